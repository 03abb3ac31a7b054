"""python -m bench.plan --depth 110 --batch-size 128: what a plan predicts against what its steps take, saving
everything and in segments.

A fresh process a plan and repeat, in turn; medians. Memory: of a GPU the most that PyTorch allocated, of a
CPU the process's peak beyond what it held with everything imported. Writes
bench/results/plan-resnet<depth>-<device>-<date>.json and prints a table."""

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

from bench.memory import reset_peak, resident_bytes, warm
from bench.record import RESULTS, conditions
from fastbn import FastBNOnlyResNet, devices, freeze
from fastbn.data.feed import Resident
from fastbn.data.images import Images
from fastbn.planning import data_sheets, precision, roofline
from fastbn.recipe import Recipe
from fastbn.training.planner import planner_of
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals

UNTIMED, TIMED = 2, 5  # steps: the first compiles, the second is captured


def measure(depth: int, batch: int, memory: float | None, device: torch.device) -> dict[str, Any]:
    """In a process of its own: predicted and measured bytes, the least time and a step's median."""
    warm(False)
    speeds, idle = data_sheets.here(device), resident_bytes("VmRSS") if device.type == "cpu" else 0
    reset_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 32, 32, 3), dtype=torch.uint8, generator=draw)
    source = Resident(Images(pixels, torch.arange(batch) % 10).to(device))
    model = freeze(FastBNOnlyResNet(depth), "bn").to(device).train()
    recipe = Recipe(batch_size=batch, memory=memory).resolved(160, precision.automatic("auto", device))
    planner = planner_of(model, source, recipe)
    assert planner is not None
    step, totals = TrainingStep(model, source, recipe, planner=planner), Totals.zero(device)
    assert step.plan is not None
    seconds = []
    with precision.arithmetic(recipe.precision, device):
        source.begin(0, 0)
        (inputs,) = source.batches(batch)
        for _ in range(UNTIMED + TIMED):
            start = time.perf_counter()
            step(inputs, 0.0, totals)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    measured = devices.peak_memory_bytes(device) if device.type == "cuda" else resident_bytes("VmHWM") - idle
    plan = step.plan
    return {
        "precision": recipe.precision,
        "predicted_bytes": plan.memory.peak,
        "measured_bytes": measured,
        "saved_bytes": plan.memory.saved,
        "computed_again": round(plan.again, 4),
        "least_seconds": roofline.seconds(planner, plan, recipe.precision, speeds),
        "seconds": statistics.median(seconds[UNTIMED:]),
        "seconds_least_most": [min(seconds[UNTIMED:]), max(seconds[UNTIMED:])],
    }


def fresh(asked: argparse.Namespace, batch: int, memory: float | None) -> dict[str, Any]:
    """The same by a new process, which prints it as one line."""
    command = [
        sys.executable,
        "-m",
        "bench.plan",
        "--depth",
        str(asked.depth),
        "--batch-size",
        str(batch),
        "--alone",
    ]
    command += ["--memory", str(memory)] if memory is not None else []
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=110)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128])
    parser.add_argument(
        "--memory",
        type=float,
        help="GB for the plan in segments; half of what the whole one needs, and its weights",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--alone", action="store_true", help="one plan, in this process: prints its figures as a line of JSON"
    )
    asked = parser.parse_args()
    device = devices.choose_device("auto")
    if asked.alone:
        print(json.dumps(measure(asked.depth, asked.batch_size[0], asked.memory, device)))
        return
    found, rows = conditions(device), []
    slug = "cpu" if device.type == "cpu" else devices.describe(device).lower().replace(" ", "-")
    target = RESULTS / f"plan-resnet{asked.depth}-{slug}-{found['date']}.json"
    for batch in asked.batch_size:
        whole = fresh(asked, batch, None)
        half = asked.memory or (whole["predicted_bytes"] - whole["saved_bytes"] / 2) / data_sheets.GB / (
            1 - data_sheets.SPARE
        )
        runs: dict[str, list[dict[str, Any]]] = {"whole": [], "in segments": []}
        for _ in range(asked.repeats):
            runs["whole"].append(fresh(asked, batch, None))
            runs["in segments"].append(fresh(asked, batch, half))
        for name, every in runs.items():
            middle = sorted(every, key=lambda run: run["seconds"])[len(every) // 2]
            row = {
                "batch_size": batch,
                "plan": name,
                **middle,
                "images_per_second": batch / middle["seconds"],
                "runs": len(every),
            }
            rows.append(row)
            print(
                f"batch {batch:6,} {name:12} predicted {row['predicted_bytes'] / 1e6:9,.0f} MB, took "
                f"{row['measured_bytes'] / 1e6:9,.0f}"
                f"; at least {row['least_seconds'] * 1e3:8,.1f} ms, took {row['seconds'] * 1e3:8,.1f}; "
                f"again {row['computed_again']:.0%}"
            )
        target.write_text(
            json.dumps({"depth": asked.depth, **found, "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )
    print(target)


if __name__ == "__main__":
    main()
