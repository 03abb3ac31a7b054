"""python -m bench.xla: a training step of ResNet-14 by --device xla beside the CPU's own, in one process and
in turn.

Needs torch_xla (`.ci/xla` makes an environment that has it). Writes
bench/results/step-resnet14-32px-b128-xla-<date>.json."""

from __future__ import annotations

import torch

from bench.records.rows import Row, new
from bench.suite import clock
from bench.suite.cases import Case
from bench.suite.steps import Provider
from fastbn.machine import xla
from fastbn.machine.devices import carry_out

CASE, UNTIMED, TIMED = Case(14, 128), 3, 11
PROVIDERS = {"xla, stock": ("xla", "stock"), "cpu, stock": ("cpu", "stock"), "cpu, native": ("cpu", "native")}


def step_of(device: torch.device, engine: str) -> clock.Call:
    """Return a step that ends when its loss is known."""
    step = Provider("", "bn", engine, torch.contiguous_format).fit(CASE, device)
    return lambda: step().loss.item()


def main() -> None:
    record, cpu = new(), torch.device("cpu")
    devices = {"xla": xla.device(), "cpu": cpu}
    calls = {name: step_of(devices[kind], engine) for name, (kind, engine) in PROVIDERS.items()}
    before = {
        name: lambda kind=kind: carry_out(devices[kind], wait=True) for name, (kind, _) in PROVIDERS.items()
    }
    warm = clock.interleaved(calls, UNTIMED, cpu, before=before)
    samples = clock.interleaved(calls, TIMED, cpu, before=before)
    for name in calls:
        row = Row.of("xla", CASE, name, first_seconds=warm[name][0])
        row.more = {"least_seconds": min(samples[name])}
        record.rows.append(row.time(samples[name]))
        found = f"{1e3 * (row.seconds or 0.0):8.1f} ms, least {1e3 * min(samples[name]):8.1f}"
        print(f"{name:12} {found}; the first step {warm[name][0]:.2f} s")
    print(record.save(f"step-resnet14-32px-b{CASE.batch_size}-xla"))


if __name__ == "__main__":
    main()
