"""python -m bench.xla: a training step of ResNet-14 by --device xla beside the CPU's own, in one process and
in turn.

Needs torch_xla (`.ci/xla` makes an environment that has it). Writes
bench/results/step-resnet14-32px-b128-xla-<date>.json."""

from __future__ import annotations

import itertools
import json
import statistics
import time

import torch

from bench.record import RESULTS, conditions
from fastbn import FastBNOnlyResNet, fuse, xla
from fastbn.data.feed import Resident
from fastbn.data.images import Images
from fastbn.devices import carry_out
from fastbn.recipe import Recipe
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals

BATCH, UNTIMED, TIMED = 128, 3, 11
PROVIDERS = (("xla, stock", "xla", "stock"), ("cpu, stock", "cpu", "stock"), ("cpu, native", "cpu", "native"))


def main() -> None:
    draw = torch.Generator().manual_seed(0)
    images = Images(
        torch.randint(0, 256, (4 * BATCH, 32, 32, 3), dtype=torch.uint8, generator=draw),
        torch.arange(4 * BATCH) % 10,
    )
    found, ready, seconds = conditions(), {}, {}
    for name, kind, engine in PROVIDERS:
        device = xla.device() if kind == "xla" else torch.device("cpu")
        model = fuse(FastBNOnlyResNet(14, engine="stock").to(device), engine).train()
        source = Resident(images.to(device))
        source.begin(0, 0)
        step = TrainingStep(model, source, Recipe(batch_size=BATCH).resolved(2))
        ready[name], seconds[name] = (device, step, itertools.cycle(list(source.batches(BATCH)))), []
    for _ in range(UNTIMED + TIMED):
        for name, (device, step, batches) in ready.items():
            carry_out(device, wait=True)
            totals, start = Totals.zero(device), time.perf_counter()
            step(next(batches), 0.1, totals)
            totals.loss.item()
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, every in seconds.items():
        timed = every[UNTIMED:]
        rows.append(
            {
                "provider": name,
                "ms_median": 1e3 * statistics.median(timed),
                "ms_least": 1e3 * min(timed),
                "n": TIMED,
            }
        )
        print(
            f"{name:12} {rows[-1]['ms_median']:8.1f} ms, least {rows[-1]['ms_least']:8.1f}; the first step "
            f"{every[0]:.2f} s"
        )
    target = RESULTS / f"step-resnet14-32px-b{BATCH}-xla-{found['date']}.json"
    target.write_text(
        json.dumps({"depth": 14, "batch_size": BATCH, "size": 32, **found, "rows": rows}, indent=1) + "\n",
        encoding="utf-8",
    )
    print(target)


if __name__ == "__main__":
    main()
