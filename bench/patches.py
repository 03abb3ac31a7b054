"""python -m bench.patches --depth 50: what it takes to switch patches, and to serve several in one batch.

Switching: `Patches.use` beside `load_state_dict` of the same tensors. Serving, in evaluation: a batch all of
one task by the network's own forward; the same batch of several tasks by `Patches.forward`; the same task by
task. In turn, in one process; medians. Prints a table and writes
bench/results/patches-resnet<depth>-<size>px-b<batch>-<tasks>-tasks-<date>.json."""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bench.oracle.networks import scattered
from bench.records.rows import Row, new
from bench.suite import clock
from bench.suite.cases import Case
from fastbn import Patches, freeze, fuse
from fastbn.engine.fuse import fused_forward
from fastbn.machine.devices import choose_device
from fastbn.patches.apply import patch_of

TRAINS = "bn+output"
SWITCHES = 50  # in a sample


def patched(case: Case, tasks: int, device: torch.device, engine: str) -> Patches:
    """Return the network with so many patches, all of whose statistics, γ and β differ."""
    other = freeze(case.network(), TRAINS)
    patches = Patches(fuse(copy.deepcopy(other).to(device).eval(), engine))
    with tempfile.TemporaryDirectory() as folder:
        for task in range(tasks):
            path = Path(folder) / f"{task}.safetensors"
            patch_of(scattered(other, task + 1)).write(path)
            patches.add(str(task), path)
    return patches


def switching(patches: Patches, model: nn.Module) -> dict[str, Callable[[], object]]:
    """Return, by provider, a switch to and fro."""
    held = [patches.values(name) for name in patches.names[:2]]
    states = itertools.cycle([{key: t.clone() for key, t in values.items()} for values in held])
    names = itertools.cycle(patches.names[:2])
    return {
        "Patches.use": lambda: patches.use(next(names)),
        "load_state_dict": lambda: model.load_state_dict(next(states), strict=False),
    }


def serving(patches: Patches, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return, by provider, one batch."""
    count = len(patches.names)
    tasks = [patches.names[i % count] for i in range(len(x))]
    rows = [torch.arange(i, len(x), count) for i in range(count)]

    def one_by_one() -> None:
        for name, own in zip(patches.names, rows, strict=True):
            with patches.use(name):
                patches.model(x[own])

    return {
        "one task, the network's forward": lambda: patches.model(x),
        f"{count} tasks, Patches.forward": lambda: patches.forward(x, tasks),
        f"{count} tasks, task by task": one_by_one,
    }


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.patches", description=__doc__)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--family", default=None)
    parser.add_argument("--size", type=int, default=32, help="of the images")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=30, help="the most that the clock runs")
    parser.add_argument("--engine", default="auto")
    asked = parser.parse_args()
    device = choose_device("auto")
    case = Case(asked.depth, asked.batch_size, asked.size, asked.family)
    record = new(device=device)
    patches = patched(case, asked.tasks, device, asked.engine)
    fused = fused_forward(patches.model)
    assert fused is not None
    x, _ = case.inputs(device)

    def add(title: str, samples: dict[str, list[float]]) -> None:
        for name, every in samples.items():
            row = Row.of("patches", case, name, TRAINS)
            row.case, row.more = title, {"tasks": asked.tasks, "served": patches.served, "engine": fused.why}
            record.rows.append(row.time(every))
            print(f"{title:54} {name:32} {1e3 * (row.seconds or 0):10.3f} ms")

    with torch.no_grad():
        calls = serving(patches, x)
        for call in calls.values():
            call(), call()
        samples = clock.interleaved(calls, asked.rounds, device, most_seconds=asked.seconds)
        add(f"{asked.tasks} tasks, {case.title}", samples)
        switches = switching(patches, patches.model)
        times = dict.fromkeys(switches, SWITCHES)
        samples = clock.interleaved(switches, asked.rounds, device, times=times)
        add(f"a switch, ResNet-{case.depth}", samples)
    print(record.save(f"patches-resnet{case.depth}-{case.size}px-b{case.batch_size}-{asked.tasks}-tasks"))


if __name__ == "__main__":
    main()
