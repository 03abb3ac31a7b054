"""The launch of an experiment's runs as processes of the ordinary trainer, one on each GPU at a time, or one
after the other; with --replicas a process trains several seeds of a line side by side."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

from fastbn.cli.command import LONGEST, say
from fastbn.errors import MachineError, Stopped
from fastbn.experiments.preset import Job, beside
from fastbn.experiments.results import ERROR, outcome
from fastbn.files import read, reason, shown, write
from fastbn.machine.load_torch import load_torch

LOG = "log.txt"
DIVERGED = 3


def devices() -> list[str | None]:
    """Return CUDA_VISIBLE_DEVICES of the processes that may run side by side; [None] where there is no
    GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()] or [None]
    load_torch()
    import torch

    return [str(i) for i in range(torch.cuda.device_count())] or [None]


def log_of(out: Path) -> TextIO:
    """Open a run's log for appending, its folder made if need be. Raises MachineError where that can't be
    done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return open(out / LOG, "a", encoding="utf-8", errors="replace", opener=_own)
    except OSError as error:
        raise MachineError(f"cannot write to {out}: {reason(error)}; choose another --out") from error


def _own(path: str, flags: int) -> int:
    # no link's target, and no FIFO without a reader
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def run(jobs: Sequence[Job], places: Sequence[str | None], replicas: int = 1) -> int:
    """Run what is not done yet, so many seeds of a line in a process; what was begun is resumed. Returns how
    many failed. Raises Stopped after its processes have saved."""
    waiting = [job for job in jobs if outcome(job).state != "done"]
    done = {job.out for job in jobs} - {job.out for job in waiting}
    free, running, failed = list(places), dict[subprocess.Popen[bytes], tuple[list[Job], str | None]](), set()
    _say(
        f"{len(done)} of {len(jobs)} runs done before, {len(waiting)} to go, {len(places) * replicas} at a "
        "time"
    )
    with _stopping(running):
        while waiting or running:
            ready: dict[tuple[str, int], list[Job]] = {}
            for job in list(waiting):
                start = _start_of(job, jobs)
                if start in failed:
                    waiting.remove(job)
                    failed.add(job.out)
                    _fail(job, f"the run that it starts from failed: {start}")
                elif start is None or start in done:
                    ready.setdefault(beside(job, replicas), []).append(job)
            for group in list(ready.values())[: len(free)]:
                place = free.pop(0)
                running[_launch(group, place)] = group, place
                for job in group:
                    waiting.remove(job)
                    _say(
                        f"{job.out.name} begins"
                        + (f" on GPU {place}" if place is not None else "")
                        + f"; {job.out / LOG}"
                    )
            for process in [process for process in running if process.poll() is not None]:
                group, place = running.pop(process)
                free.append(place)
                for job in group:
                    ended = outcome(job)
                    (done if ended.state == "done" else failed).add(job.out)
                    if ended.state != "done":
                        _fail(job, _last_line(job) or f"exit code {process.returncode}")
                    else:
                        _say(f"{job.out.name}: {100 * ended.last['test_accuracy']:.1f}%")
            time.sleep(0.05)
    return len(failed)


def _start_of(job: Job, jobs: Sequence[Job]) -> object:
    """Return the folder of the run that this one starts from."""
    return next(
        (other.out for other in jobs if other.line.name == job.line.after and other.seed == job.seed), None
    )


def _launch(jobs: Sequence[Job], place: str | None) -> subprocess.Popen[bytes]:
    """Start the trainer's process, or that of several runs side by side; what is no run's own goes to the
    first one's log."""
    words = [sys.executable, "-m", "fastbn.train" if len(jobs) == 1 else "fastbn.experiments.replicas"]
    for job in jobs:
        with log_of(job.out), contextlib.suppress(FileNotFoundError):
            (job.out / ERROR).unlink()
        words += [*(["--"] if job is not jobs[0] else []), *job.arguments, "--out", str(job.out), "--resume"]
    environment = os.environ if place is None else {**os.environ, "CUDA_VISIBLE_DEVICES": place}
    with log_of(jobs[0].out) as log:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _last_line(job: Job) -> str:
    try:
        lines = read(job.out / LOG).decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return lines[-1].removeprefix("fastbn: ").removeprefix("error: ") if lines else ""


def _fail(job: Job, why: str) -> None:
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        write(job.out / ERROR, (why + "\n").encode("utf-8", "replace"))
    except OSError as error:
        raise MachineError(f"cannot write to {job.out}: {reason(error)}; choose another --out") from error
    _say(f"{job.out.name} failed: {why}")


@contextlib.contextmanager
def _stopping(running: dict[subprocess.Popen[bytes], tuple[list[Job], str | None]]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM become Stopped; the processes are then told to save and end, and waited
    for."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # while they save
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    say(f"fastbn: {shown(text, LONGEST)}")
