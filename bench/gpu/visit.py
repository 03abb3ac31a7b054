"""A visit to a GPU: stages, each a process, what matters most first, within the minutes that there are.

A stage may take its weight's part of the time that is left, so what one saves goes to those after it. Each
leaves a record that can be used when the clock runs out, and visit.json says what ran, how long it took, how
it ended and what was left out. A stage that fails does not end the others; --resume begins with the first
that has not finished.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.records.conditions import RESULTS, ROOT, write
from bench.suite.process import words

LEAST = 10.0  # seconds under which a stage is not begun
GRACE = 20.0  # seconds that a stage may take to end once its time is over
MERGE = 15.0  # seconds kept for putting the records together
TABLE = Path("fastbn") / "engine" / "triton" / "tuning.json"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A process of the visit. seconds: whether it takes --seconds, and ends by itself when they are over."""

    name: str
    arguments: tuple[str, ...]
    weight: float
    module: str = "bench.gpu"
    seconds: bool = True

    def words(self, asked: argparse.Namespace) -> list[str]:
        """Return what it takes of the visit's own options."""
        if self.module != "bench.gpu":
            return []
        kind = self.name.split("-")[0]
        given = {"out": asked.out, "small": asked.small}
        given["resume"] = asked.resume and kind in ("correctness", "step")
        if kind == "train":
            given |= {name: getattr(asked, name) or None for name in ("data_dir", "precision", "epochs")}
        if kind == "merge":
            given["results"] = asked.out / "results" if asked.small else asked.results
        return words(**given)


def step(config: str, weight: float, name: str = "") -> Stage:
    """Return the stage that measures a training step of this configuration by every provider."""
    return Stage(name or f"step-{config}", ("step", "--config", config), weight)


def tune(part: str, weight: float) -> Stage:
    """Return the stage that measures a part of the Triton engine's table."""
    return Stage(f"tune-{part}", ("--engine", "triton", "--only", part), weight, "bench.tune")


def train(depth: int, weight: float, *more: str) -> Stage:
    """Return the stage that trains a network by the paper's recipe."""
    return Stage(f"train-{depth}", ("train", "--depth", str(depth), *more), weight)


COMPILE = Stage("compile", ("compile",), 9, seconds=False)
CORRECTNESS = Stage("correctness", ("correctness",), 10)
STEPS = ("866x128", "866x1024", "50x256", "14x128", "110x128", "866x128-replicas", "110x128-replicas")
PLAN = ("--depth", "866", "--batch-size", "128", "1024", "4096", "8192", "--repeats", "1")
SHORT = (  # a lent quarter of an hour, start-up and transfers in it
    *(COMPILE, CORRECTNESS, step("866x128", 9), step("866x1024", 8), step("50x256", 7)),
    *(tune("launches", 3), tune("rolling", 4), train(14, 14)),
)
LONG = (  # an hour and more
    *(COMPILE, Stage("trial", ("trial",), 10, seconds=False), CORRECTNESS),
    *(tune(part, 10) for part in ("rolling", "launches", "convolutions")),
    *(step(config, 10) for config in STEPS),
    *(Stage("plan", PLAN, 6, "bench.plan", seconds=False), train(14, 20), train(110, 20)),
)
SMALL = (  # on a CPU, by the interpreter
    *(COMPILE, Stage("correctness", ("correctness", "--match", "float16: one pixel"), 10)),
    *(
        step("866x128", 10, "step"),
        step("866x128-replicas", 10, "step-replicas"),
        train(8, 10, "--epochs", "1"),
    ),
)
Run = Callable[[list[str], float], int]  # a command and its seconds -> its exit code; 124 where it was ended


def visit(
    out: Path,
    stages: Sequence[Stage],
    minutes: float,
    options: Callable[[Stage], list[str]] = lambda stage: [],
    resume: bool = False,
    pack: Path | None = None,
    run: Run | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run the stages within `minutes`, then put their records together; return 0 where all that ran is right.

    options: what a stage is given on top of its own arguments. pack: an archive of everything found, written
    after every stage.
    """
    run = run or process
    out.mkdir(parents=True, exist_ok=True)
    path, failed = out / "visit.json", False
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if resume and path.exists() else []
    rows: list[dict[str, Any]] = [row for row in before if row.get("exit_code") == 0]
    done, end = {row["stage"] for row in rows}, clock() + 60 * minutes - MERGE
    waiting = [stage for stage in stages if stage.name not in done]
    while waiting:
        stage, left = waiting[0], end - clock()
        allowed = left * stage.weight / sum(each.weight for each in waiting)
        waiting.pop(0)
        row: dict[str, Any] = {"stage": stage.name, "seconds_allowed": round(max(allowed, 0.0), 1)}
        if allowed < LEAST:
            row["left_out"] = "no time was left for it"
        else:
            print(f"== {stage.name}, {allowed:.0f} s", flush=True)
            command = [sys.executable, "-m", stage.module, *stage.arguments, *options(stage)]
            command += words(seconds=f"{allowed * 0.9:.0f}" if stage.seconds else None)
            start = clock()
            row |= {"exit_code": run(command, allowed), "seconds": round(clock() - start, 1)}
            failed |= row["exit_code"] not in (0, 124)
        rows.append(row)
        write(path, {"minutes": minutes, "rows": rows})
        _pack(out, pack)
        if row.get("exit_code") == 2:
            return 2  # something is missing here, which every stage would say again
    merged = run([sys.executable, "-m", "bench.gpu", "merge", *options(Stage("merge", (), 0))], MERGE + GRACE)
    _pack(out, pack)
    return 1 if failed or merged else 0


def process(command: list[str], seconds: float) -> int:
    """Run a command for so many seconds; what it printed is printed as it comes."""
    try:
        return subprocess.run(command, cwd=ROOT, timeout=seconds + GRACE).returncode
    except subprocess.TimeoutExpired:
        return 124


def chosen(only: str, minutes: float | None, small: bool) -> tuple[Sequence[Stage], float]:
    """Return the stages asked for and the minutes that they may take. `only`: names or their first parts,
    joined by commas."""
    stages = SMALL if small else SHORT if minutes is not None and minutes <= 20 else LONG
    names = [name for name in only.split(",") if name]
    every = {stage.name: stage for stage in (*LONG, *SMALL, *stages)}
    if names:
        stages = [s for s in every.values() if s.name in names or s.name.split("-")[0] in names]
    return stages, (8.0 * max(1, len(stages)) if minutes is None else minutes)


def _pack(out: Path, pack: Path | None) -> None:
    if pack is None:
        return
    with tarfile.open(pack, "w:gz") as archive:
        for found in (out, RESULTS, ROOT / TABLE):
            if found.exists():
                archive.add(found, found.name)
