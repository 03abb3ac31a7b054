"""The clock: providers timed in turn, round after round, so that a machine's drift falls on all of them
alike.

pytest-benchmark times one test after another, which would not interleave. So a case is measured once, by
`interleaved`, and each provider's test plays its samples back: `played` is the session's --benchmark-timer,
moved on by one sample a round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

Call = Callable[[], Any]
LEAST_ROUNDS = 3  # however long they take: a median and its quartiles


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Call, device: torch.device) -> float:
    """Of one call, by the host's clock, the device idle before and after."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def kernel_seconds(call: Call, device: torch.device) -> float:
    """Of one call, by the device's own clock where it has one: a synchronisation takes as long as a
    kernel."""
    if device.type != "cuda":
        return seconds(call, device)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleaved(
    calls: Mapping[str, Call],
    rounds: int,
    device: torch.device,
    *,
    most_seconds: float = float("inf"),
    before: Mapping[str, Call] | None = None,
    clock: Callable[[Call, torch.device], float] = seconds,
) -> dict[str, list[float]]:
    """Seconds of each call, a round at a time; every round begins one further on, so that each has every
    place.

    Warmed-up calls only: nothing is left out. `before` holds what each has run ahead of it, outside the
    clock. Ends early, with whole rounds and no fewer than three, when `most_seconds` have passed."""
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting, begun = gc.isenabled(), time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            if turn >= LEAST_ROUNDS and time.perf_counter() - begun > most_seconds:
                break
            first = turn % max(len(names), 1)
            for name in names[first:] + names[:first]:
                if before is not None:
                    before[name]()
                samples[name].append(clock(calls[name], device))
    finally:
        if collecting:
            gc.enable()
    return samples


def quartiles(samples: Iterable[float]) -> dict[str, Any]:
    """A Row's seconds (the median), q1, q3 and n."""
    found = list(samples)
    q1, median, q3 = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    return {"seconds": median, "q1": q1, "q3": q3, "n": len(found)}


class Played:
    """A clock that stands still but for the samples that it plays."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def play(self, benchmark: Any, samples: list[float]) -> None:
        """The samples as rounds of pytest-benchmark's fixture, in the order in which they were taken."""
        rest = iter(samples)

        def advance() -> None:
            self.now += next(rest, 0.0)  # with --benchmark-disable it is called once

        benchmark.pedantic(advance, rounds=len(samples))


played = Played()
