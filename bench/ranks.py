"""python -m bench.ranks --depth 32 --ranks 1,2: images a second of one rank and of several, on the same
threads in all, or on a GPU each.

Every count of ranks is started by torchrun, in turn, --repeats times; its step is the run's own, its time the
first rank's from one finished step to the last. On CPUs the ranks share --threads. With --weak the batch is
each rank's own, else it is the global one. Prints a table and writes
bench/results/ranks-resnet<depth>-<size>px-b<batch>-<engine>-<date>.json."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.record import RESULTS, conditions
from fastbn import FastBNOnlyResNet, devices
from fastbn.data.feed import Resident
from fastbn.data.images import Images
from fastbn.planning import precision
from fastbn.planning.explain import explain
from fastbn.recipe import Recipe
from fastbn.training.distributed import agree
from fastbn.training.distributed.exchange import message_bytes
from fastbn.training.distributed.ranks import Ranks, started
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals

WARM = 3  # steps: they pack, compile, record


def images(count: int, size: int) -> Images:
    draw = torch.Generator().manual_seed(0)
    return Images(
        torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=draw),
        torch.arange(count) % 10,
    )


def measure(asked: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """In each rank: seconds of a step, and who carried it out."""
    device = devices.choose_device("auto")
    model = FastBNOnlyResNet(asked.depth).to(device).train()
    automatic = precision.automatic("auto", device)
    batch = asked.batch_size * (ranks.count if asked.weak else 1)
    recipe = Recipe(batch_size=batch, sync_bn=asked.sync_bn).resolved(1, automatic)
    source = Resident(images(batch, asked.size).to(device))
    agree.check(ranks, source, recipe)
    step = TrainingStep(model, source, recipe, ranks)
    agree.start(step, None)
    source.begin(0, 0)
    totals = Totals.zero(device)
    with precision.arithmetic(automatic, device), agree.statistics(step, recipe):
        for number in range(WARM + asked.steps):
            if number == WARM:
                bool(totals.finite)
                start = time.perf_counter()
            for inputs in source.batches(batch, 0, ranks.share):
                step(inputs, 0.1, totals, batch)
                step.exchange.stopping()
        step.exchange.finish()
        bool(totals.finite)
        seconds = (time.perf_counter() - start) / asked.steps
    found = {
        "seconds": seconds,
        "images_per_second": batch / seconds,
        "batch": batch,
        "threads": torch.get_num_threads(),
    }
    return found | {
        "engine": explain(model).engine,
        "bytes": message_bytes(len(step.flat.vector)),
        "precision": automatic,
    }


def fresh(asked: argparse.Namespace, ranks: int) -> dict[str, Any]:
    """The same by torchrun's processes, the first of which prints it as one line."""
    threads = str(max(1, asked.threads // ranks))
    numbers = {
        "depth": asked.depth,
        "batch-size": asked.batch_size,
        "size": asked.size,
        "steps": asked.steps,
        "threads": threads,
    }
    options = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    options += ["--weak"] * asked.weak + ["--sync-bn"] * asked.sync_bn
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        "bench.ranks",
        "--only",
    ]
    done = subprocess.run(
        [*command, *options], stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.ranks", description=__doc__)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="of the images")
    parser.add_argument(
        "--ranks",
        default="1,2",
        help="counts, separated by commas; the first is what the others are set beside",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of all ranks together")
    parser.add_argument("--steps", type=int, default=10, help="timed ones")
    parser.add_argument(
        "--repeats", type=int, default=5, help="starts a count, taken in turn; their median counts"
    )
    parser.add_argument("--weak", action="store_true", help="--batch-size is each rank's own")
    parser.add_argument("--sync-bn", action="store_true")
    parser.add_argument(
        "--only",
        action="store_true",
        help="as one of torchrun's ranks: the first prints its figures as a line of JSON",
    )
    asked = parser.parse_args()
    if asked.only:
        torch.set_num_threads(asked.threads)
        with started() as ranks:
            found = measure(asked, ranks)
            if ranks.first:
                print(json.dumps(found))
        return
    said = conditions(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    counts = [int(part) for part in asked.ranks.split(",")]
    rows: list[dict[str, Any]] = [{"ranks": count, "runs": []} for count in counts]
    for _ in range(asked.repeats):
        for row in rows:
            row["runs"].append(fresh(asked, row["ranks"]))
    print(
        f"{'ranks':>6}{'threads':>9}{'batch':>8}{'ms a step':>12}{'least … most':>18}"
        f"{'images/s':>12}{'of the first':>14}"
    )
    for row in rows:
        times = [run["seconds"] for run in row["runs"]]
        row |= {key: row["runs"][0][key] for key in ("threads", "batch", "engine", "bytes", "precision")}
        row["seconds"] = statistics.median(times)
        row["images_per_second"] = row["batch"] / row["seconds"]
        row["of_first"] = round(row["images_per_second"] / rows[0]["images_per_second"], 3)
        spread = f"{min(times) * 1e3:.1f} … {max(times) * 1e3:.1f}"
        print(
            f"{row['ranks']:6}{row['threads']:9}{row['batch']:8}{row['seconds'] * 1e3:12.1f}{spread:>18}"
            f"{row['images_per_second']:12,.0f}{row['of_first']:14.2f}"
        )
    names = ("depth", "batch_size", "size", "weak", "sync_bn", "steps")
    record = {name: getattr(asked, name) for name in names} | said | {"rows": rows}
    network = f"resnet{asked.depth}-{asked.size}px-b{asked.batch_size}"
    name = f"ranks-{network}-{rows[0]['engine']}-{said['date']}.json"
    (RESULTS / name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(RESULTS / name)


if __name__ == "__main__":
    main()
