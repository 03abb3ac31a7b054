"""python -m bench.gpu step --config 866x128: a whole training step by every provider, and the project's bars.

stock     everything trains, or BatchNorm only; channels-last; eager in fp32, TF32, and under autocast in fp16
          and bf16; the last two also as one CUDA graph of the whole step, and compiled (to depth 56). No
          GradScaler anywhere, which favours stock.
fastbn    drop-in: torch.optim.SGD in a user's loop; fit: its own captured step, batch and augmentation
          included; replicas, in a --config of their own: a step of each of several networks side by side,
          ms_a_replica a network's part of it.
Clock     the host's, around a burst of steps that ends synchronised. At depth 110 and below providers take
          turns; where their memory does not fit side by side, one follows the other ("interleaved": false).
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.gpu.bars import bars
from bench.gpu.measure import DEVICE, LATE, Sink, failure, free, spread, synchronize
from bench.gpu.networks import like_stock, offers_mixed
from bench.gpu.providers import AUTOCAST, COMPILED_DEPTH, Ready, Setting, providers
from fastbn.errors import is_out_of_memory

NEEDS = {"compiled": 150}  # seconds that must be left for it to begin; of the others 20


@functools.cache
def wrong(setting: Setting, small: bool, kind: str) -> str:
    """Why fastbn's figures in this precision would be worth nothing, or "". A flip-free net of at most 110
    layers, against float64."""
    try:
        dtype = AUTOCAST.get("bf16" if kind == "mixed" else kind, torch.float32)
        errors = like_stock(
            min(setting.depth, 110),
            setting.family,
            small,
            dtype,
            True,
            False,
            kind == "tf32",
            kind == "mixed",
        )
        for what, error, most in errors:
            if not error < most:
                return f"{what} is off by {error:.1e}, allowed {most:.1e}"
    except Exception as error:  # whatever it is, the figures are worth nothing
        return failure(error)
    return ""


def started(make: Callable[[], Ready], row: dict[str, Any]) -> Ready:
    """The step, taken once; with the seconds that took, and what it and the next two hold at most in
    memory."""
    free()
    held, cuda = torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0, DEVICE.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step = make()
    synchronize()
    row["seconds_to_make"] = time.perf_counter() - start
    start = time.perf_counter()
    step()
    synchronize()
    row["first_step_seconds"] = time.perf_counter() - start
    for _ in range(2):
        step()
    synchronize()
    row["peak_memory_bytes"] = torch.cuda.max_memory_allocated() - held if cuda else None
    return step


def burst(step: Ready, count: int) -> float:
    """Seconds a step, of some."""
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        step()
    synchronize()
    return (time.perf_counter() - start) / count


def timed(ready: list[tuple[dict[str, Any], Ready]], budget: float, small: bool) -> None:
    """Warms up and times in turn, all of these within a budget of seconds."""
    plans = []
    for row, step in ready:
        each = burst(step, 1)
        rounds = 2 if small else max(5, min(50, int(budget / len(ready) / each * 0.7)))
        warm = 0 if small else 20 if each < 0.1 else 3
        if warm:
            burst(step, warm)
        row |= {"warm_ups": 4 + warm, "steps_a_round": 5 if each < 0.01 and not small else 1}
        plans.append((row, step, row["steps_a_round"], rounds, []))
    for turn in range(max(rounds for *_, rounds, _ in plans)):
        for _, step, count, rounds, seconds in plans:
            if turn < rounds:
                seconds.append(burst(step, count))
    for row, *_, seconds in plans:
        row |= {
            ("rounds" if key == "rounds" else f"ms_{key}"): value
            for key, value in spread(seconds, 1e-3).items()
        }
        if "replicas" in row:
            row["ms_a_replica"] = row["ms_median"] / row["replicas"]


def start_again_if_broken(seconds: float) -> None:
    """An illegal access leaves a process nothing of CUDA: what is still to be measured is another's, in
    this one's place."""
    try:
        synchronize()
    except RuntimeError:
        os.execv(
            sys.executable,
            [sys.executable, "-m", "bench.gpu", *sys.argv[1:], "--resume", "--seconds", str(seconds)],
        )


def step(sink: Sink, setting: Setting, small: bool, seconds: float) -> int:
    """One setting; the number of failures."""
    deadline = time.monotonic() + seconds
    together = setting.depth <= 110 and setting.family == "cifar"
    made = providers(setting)
    if DEVICE.type != "cuda":
        sink.leave_out("TF32, autocast, CUDA graphs, torch.compile: they are measured on CUDA")
    if setting.depth > COMPILED_DEPTH and not setting.replicas:
        sink.leave_out(f"torch.compile: whole networks are compiled to depth {COMPILED_DEPTH}")
    if not offers_mixed():
        sink.leave_out("precision mixed: this version of fastbn does not offer it")
    ready: list[tuple[dict[str, Any], Ready]] = []
    done = {row["provider"] for row in sink.rows}
    for number, (name, (how, make)) in enumerate(made.items()):
        if name in done:
            continue
        row: dict[str, Any] = {"provider": name, **how, "interleaved": together}
        left = deadline - time.monotonic()
        if left < NEEDS.get(how["way"], 20) and not small:
            sink.add(**row, skipped=LATE)
            continue
        reason = wrong(setting, small, how["precision"]) if how["who"] == "fastbn" else ""
        if reason:
            sink.add(**row, failure=f"not timed: {reason}")
            continue
        own = None  # the memory of the one before goes back before this is made
        try:
            own = started(make, row)
            if together:
                ready.append((sink.add(**row, untimed=True), own))
                continue
            timed([(row, own)], min(20.0, left / (len(made) - number)), small)
            sink.add(**row)
        except Exception as error:  # one provider's: the others are measured all the same
            memory = is_out_of_memory(error)
            sink.add(
                **row,
                **({"skipped": "runs out of the device's memory"} if memory else {"failure": failure(error)}),
            )
            if not memory:
                start_again_if_broken(deadline - time.monotonic())
    if ready:
        timed(ready, max(30.0, min(120.0, deadline - time.monotonic() - 10)), small)
        for row, _ in ready:
            del row["untimed"]
            print(f"{row['provider']}: {row['ms_median']:.3f} ms")
    failures = [row for row in sink.rows if "failure" in row]
    sink.finish(failures=failures, bars=bars(setting.name, sink.rows))
    return len(failures)
