"""python -m bench.ranks --depth 32 --ranks 1,2: images a second of one rank and of several, on the same
threads in all, or on a GPU each.

Every count of ranks is started by torchrun, in turn, --repeats times; its step is the run's own, its time the
first rank's from one finished step to the last. On CPUs the ranks share --threads. With --weak the batch is
each rank's own, else it is the global one. Prints a table and writes
bench/results/ranks-resnet<depth>-<size>px-b<batch>-<engine>-<date>.json."""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from typing import Any

import torch

from bench.records.rows import Row, new
from bench.suite.cases import Case, feed
from bench.suite.process import in_turn, told, words
from fastbn import FastBNOnlyResNet
from fastbn.machine import devices
from fastbn.planning import precision
from fastbn.planning.explain import explain
from fastbn.recipe import Recipe
from fastbn.training.distributed import agree
from fastbn.training.distributed.exchange import message_bytes
from fastbn.training.distributed.ranks import Ranks, started
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals

WARM = 3  # steps: they pack, compile, record


def measure(asked: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Return, in each rank, the seconds of a step, and the engine that ran it."""
    device = devices.choose_device("auto")
    model = FastBNOnlyResNet(asked.depth).to(device).train()
    automatic = precision.automatic("auto", device)
    batch = asked.batch_size * (ranks.count if asked.weak else 1)
    recipe = Recipe(batch_size=batch, sync_bn=asked.sync_bn).resolved(1, automatic)
    source = feed(batch, asked.size, device)
    agree.check(ranks, source, recipe)
    step = TrainingStep(model, source, recipe, ranks)
    agree.start(step, None)
    totals = Totals.zero(device)
    with precision.arithmetic(automatic, device), agree.statistics(step):
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
    found = {"seconds": seconds, "images_per_second": batch / seconds, "batch": batch}
    found |= {"threads": torch.get_num_threads(), "engine": explain(model).engine}
    return found | {"bytes": message_bytes(len(step.flat.vector)), "precision": automatic}


def fresh(asked: argparse.Namespace, ranks: int) -> dict[str, Any]:
    """Return the same by torchrun's processes, the first of which tells it."""
    own = {name: getattr(asked, name) for name in ("depth", "batch_size", "size", "steps", "weak", "sync_bn")}
    options = words(**own, threads=max(1, asked.threads // ranks))
    torchrun = ("torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m")
    return told(*torchrun, "bench.ranks", "--only", *options)


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.ranks", description=__doc__)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="of the images")
    what = "counts, separated by commas; the first is what the others are set beside"
    parser.add_argument("--ranks", default="1,2", help=what)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of all ranks together")
    parser.add_argument("--steps", type=int, default=10, help="timed ones")
    what = "starts per count, taken in turn; their median counts"
    parser.add_argument("--repeats", type=int, default=5, help=what)
    parser.add_argument("--weak", action="store_true", help="--batch-size is each rank's own")
    parser.add_argument("--sync-bn", action="store_true")
    what = "as one of torchrun's ranks: the first prints its figures as a line of JSON"
    parser.add_argument("--only", action="store_true", help=what)
    asked = parser.parse_args()
    if asked.only:
        torch.set_num_threads(asked.threads)
        with started() as ranks:
            found = measure(asked, ranks)
            if ranks.first:
                print(json.dumps(found))
        return
    record = new(device=devices.choose_device("auto"))
    counts = map(int, asked.ranks.split(","))
    runs = in_turn({count: functools.partial(fresh, asked, count) for count in counts}, asked.repeats)
    head = f"{'ranks':>6}{'threads':>9}{'batch':>8}{'ms a step':>12}{'least … most':>18}"
    print(f"{head}{'images/s':>12}{'of the first':>14}")
    first = 0.0
    for count, every in runs.items():
        times, own = [run["seconds"] for run in every], every[0]
        case = Case(asked.depth, own["batch"], asked.size)
        row = Row.of("ranks", case, f"{count} ranks", precision=own["precision"])
        row.seconds, row.n = statistics.median(times), len(times)
        rate = own["batch"] / row.seconds
        first = first or rate
        settings = {name: getattr(asked, name) for name in ("weak", "sync_bn", "steps")}
        row.more = settings | {key: own[key] for key in ("threads", "engine", "bytes")}
        row.more |= {"ranks": count, "runs": every, "of_first": round(rate / first, 3)}
        record.rows.append(row)
        spread = f"{min(times) * 1e3:.1f} … {max(times) * 1e3:.1f}"
        head = f"{count:6}{own['threads']:9}{own['batch']:8}{row.seconds * 1e3:12.1f}{spread:>18}"
        print(f"{head}{rate:12,.0f}{rate / first:14.2f}")
    network = f"resnet{asked.depth}-{asked.size}px-b{asked.batch_size}"
    print(record.save(f"ranks-{network}-{own['engine']}"))


if __name__ == "__main__":
    main()
