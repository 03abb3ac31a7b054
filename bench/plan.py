"""python -m bench.plan --depth 110 --batch-size 128: what a plan predicts against what its steps take, saving
everything and in segments.

A fresh process per plan and repeat, in turn; medians. Memory: of a GPU the most that PyTorch allocated, of a
CPU the process's peak beyond what it held with everything imported. Writes
bench/results/plan-resnet<depth>-<device>-<date>.json and prints a table."""

from __future__ import annotations

import argparse
import functools
import json
from typing import Any

import torch

from bench.records.rows import Row, new, quartiles
from bench.suite import clock
from bench.suite.cases import Case, feed
from bench.suite.process import allocated, in_turn, reset_peak, resident_bytes, told, warm, words
from fastbn import FastBNOnlyResNet, freeze
from fastbn.machine import devices
from fastbn.planning import data_sheets, precision, roofline
from fastbn.recipe import Recipe
from fastbn.training.planner import planner_of
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals

UNTIMED, TIMED = 2, 5  # steps: the first compiles, the second is captured


def measure(depth: int, batch: int, memory: float | None, device: torch.device) -> dict[str, Any]:
    """Return, in a process of its own, predicted and measured bytes, the least time and a step's median."""
    warm()
    speeds, idle = data_sheets.here(device), resident_bytes("VmRSS") if device.type == "cpu" else 0
    reset_peak()
    allocated(device)
    source = feed(batch, 32, device)
    model = freeze(FastBNOnlyResNet(depth), "bn").to(device).train()
    recipe = Recipe(batch_size=batch, memory=memory).resolved(160, precision.automatic("auto", device))
    planner = planner_of(model, source, recipe)
    assert planner is not None
    step, totals = TrainingStep(model, source, recipe, planner=planner), Totals.zero(device)
    assert step.plan is not None
    with precision.arithmetic(recipe.precision, device):
        (inputs,) = source.batches(batch)
        steps = range(UNTIMED + TIMED)
        seconds = [clock.seconds(lambda: step(inputs, 0.0, totals), device) for _ in steps][UNTIMED:]
    measured = devices.peak_memory_bytes(device) if device.type == "cuda" else resident_bytes("VmHWM") - idle
    plan = step.plan
    return quartiles(seconds) | {
        "precision": recipe.precision,
        "predicted_bytes": plan.memory.peak,
        "measured_bytes": measured,
        "saved_bytes": plan.memory.saved,
        "computed_again": round(plan.again, 4),
        "least_seconds": roofline.seconds(planner, plan, recipe.precision, speeds),
    }


def fresh(asked: argparse.Namespace, batch: int, memory: float | None) -> dict[str, Any]:
    """Return the same by a new process."""
    return told("bench.plan", *words(depth=asked.depth, batch_size=batch, memory=memory, alone=True))


def row_of(case: Case, name: str, runs: list[dict[str, Any]]) -> Row:
    """Return the row of a plan: of its runs the one in the middle."""
    middle = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
    own = {name: middle[name] for name in ("seconds", "q1", "q3", "n", "saved_bytes", "precision")}
    row = Row.of("plan", case, name, peak_memory_bytes=middle["measured_bytes"], **own)
    row.more = {key: middle[key] for key in ("predicted_bytes", "computed_again", "least_seconds")}
    row.more["runs"] = len(runs)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=110)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128])
    what = "GB for the plan in segments; half of what the whole one needs, and its weights"
    parser.add_argument("--memory", type=float, help=what)
    parser.add_argument("--repeats", type=int, default=3)
    what = "one plan, in this process: prints its figures as a line of JSON"
    parser.add_argument("--alone", action="store_true", help=what)
    asked = parser.parse_args()
    device = devices.choose_device("auto")
    if asked.alone:
        print(json.dumps(measure(asked.depth, asked.batch_size[0], asked.memory, device)))
        return
    record = new(device=device)
    name = "cpu" if device.type == "cpu" else record.device
    for batch in asked.batch_size:
        whole = fresh(asked, batch, None)
        half = (whole["predicted_bytes"] - whole["saved_bytes"] / 2) / data_sheets.GB
        grants = {"whole": None, "in segments": asked.memory or half / (1 - data_sheets.SPARE)}
        again = {plan: functools.partial(fresh, asked, batch, grant) for plan, grant in grants.items()}
        runs = in_turn(again, asked.repeats)
        for plan, every in runs.items():
            row = row_of(Case(asked.depth, batch), plan, every)
            record.rows.append(row)
            assert row.more and row.peak_memory_bytes and row.seconds
            print(
                f"batch {batch:6,} {plan:12} predicted {row.more['predicted_bytes'] / 1e6:9,.0f} MB, took "
                f"{row.peak_memory_bytes / 1e6:9,.0f}; at least {row.more['least_seconds'] * 1e3:8,.1f} ms, "
                f"took {row.seconds * 1e3:8,.1f}; again {row.more['computed_again']:.0%}"
            )
        target = record.save(f"plan-resnet{asked.depth}-{name}")
    print(target)


if __name__ == "__main__":
    main()
