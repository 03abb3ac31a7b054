"""python -m bench.gpu correctness: every kernel and whole networks on this device against float64; a failure
is a row, not an end.

The checks are shared out among --jobs processes, since compiling the kernels takes the processors' time. Each
leaves correctness-<i>.json; one that dies is started again after the check that it died of, which is then a
failure itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.gpu.kernels import Checks, Errors, operation_checks
from bench.gpu.measure import DEVICE, Sink
from bench.gpu.networks import network_checks
from bench.records.conditions import ROOT
from bench.records.rows import reason
from bench.suite.process import words

RESTARTS = 20  # of one process
GRACE = 15  # seconds that a check may go on after the deadline


def judge(name: str, check: Callable[[], Errors]) -> dict[str, Any]:
    """Return a row: what came nearest to its tolerance, and everything that failed."""
    failures: list[dict[str, Any]] = []
    worst, start = _failure(name, "nothing was checked"), time.perf_counter()
    try:
        for what, error, most in check():
            found = _failure(name, what, float(error), float(most))
            if not error < most:
                failures.append(found)
            if worst["error"] is None or not error / most <= worst["error"] / worst["tolerance"]:
                worst = found
        if worst["error"] is None:
            raise AssertionError(worst["what"])
    except Exception as error:  # whatever it is, the other checks are made
        failures.append(_failure(name, reason(error)))
    nearest = {"worst": worst["what"], "error": worst["error"], "tolerance": worst["tolerance"]}
    return {"name": name, **nearest, "seconds": time.perf_counter() - start, "failures": failures}


def _failure(name: str, what: str, error: float | None = None, most: float | None = None) -> dict[str, Any]:
    return {"name": name, "what": what, "error": error, "tolerance": most}


def died(name: str, how: str) -> dict[str, Any]:
    """Return the row of a check that took its process with it."""
    unknown = {"worst": how, "error": None, "tolerance": None, "seconds": 0.0}
    return {"name": name, **unknown, "failures": [_failure(name, how)]}


def selected(small: bool, match: str, index: int, jobs: int) -> Checks:
    return [pair for pair in operation_checks(small) + network_checks(small) if match in pair[0]][index::jobs]


def worker(out: Path, small: bool, match: str, index: int, jobs: int, deadline: float) -> None:
    """Make one process's share of the checks, but for what one before it has done; end early where CUDA is
    beyond use."""
    sink = Sink(out, f"correctness-{index}", resume=True, unchecked=0, running=None)
    if sink.before.get("running"):
        sink.add(**died(sink.before["running"], "its process ended"))
    done = {row["name"] for row in sink.rows}
    for name, check in selected(small, match, index, jobs):
        if name in done:
            continue
        if time.time() > deadline:
            sink.record["unchecked"] += 1
            continue
        sink.record["running"] = name
        sink.write()
        row = judge(name, check)
        sink.record["running"] = None
        sink.add(**row)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()  # raises where a launch has broken the context: a new process goes on
    sink.finish()


def correctness(out: Path, small: bool, match: str, jobs: int, seconds: float, resume: bool) -> int:
    """Make every check, in processes of their own where there are several, and return the number of failures.
    Leaves correctness.json."""
    if not resume:
        for path in out.glob("correctness*.json"):
            path.unlink()
    deadline = time.time() + seconds
    if jobs == 1:
        worker(out, small, match, 0, 1, deadline)
    else:
        shared_out(out, small, match, jobs, deadline)
    return collect(out, small)


def shared_out(out: Path, small: bool, match: str, jobs: int, deadline: float) -> None:
    """Run a process per index, started again where it dies."""
    common = [sys.executable, "-m", "bench.gpu", "correctness"]
    common += words(out=out, match=match, deadline=deadline, jobs=jobs, small=small)

    def start(index: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*common, "--part", str(index)], cwd=ROOT)

    running = {index: (start(index), RESTARTS) for index in range(jobs)}
    while running:
        time.sleep(0.2)
        for index, (process, left) in list(running.items()):
            if process.poll() is None:
                if time.time() > deadline + GRACE:
                    process.kill()  # it hangs in a check, which its record names
                continue
            del running[index]
            if process.returncode != 0 and left and time.time() < deadline:
                running[index] = start(index), left - 1


def collect(out: Path, small: bool) -> int:
    """Put the parts in one record, and return the number of failures."""
    sink = Sink(out, "correctness")
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("correctness-*.json"))]
    rows = [row for part in parts for row in part["rows"]]
    rows += [died(part["running"], "its process ended, or was stopped") for part in parts if part["running"]]
    for what in left_out(small):
        sink.leave_out(what)
    unchecked = sum(part["unchecked"] for part in parts)
    if unchecked or not all(part["finished"] for part in parts):
        sink.leave_out(f"{unchecked or 'some'} checks for want of time: --resume goes on with them")
    sink.rows.extend(rows)
    failures = [found for row in rows for found in row["failures"]]
    sink.finish(checked=len(rows), failures=failures)
    print(f"{len(rows)} checks, {len(failures)} failures")
    for found in failures[:40]:
        print("FAILED {name}: {what}, error {error}, allowed {tolerance}".format(**found))
    return len(failures)


def left_out(small: bool) -> Iterator[str]:
    """Yield what this device or size does not allow."""
    if DEVICE.type != "cuda":
        yield "bfloat16: in the interpreter its products are of bit patterns"
        yield "TF32: there is none on a CPU"
        yield "CUDA graphs: on a CPU a replay launches again"
    if small:
        yield "the shapes of real networks: the interpreter would take hours"
