"""The clock of every measurement: calls timed in turn, round after round, so that a machine's drift falls on
all of them alike.

pytest-benchmark times one test after another, which would not interleave. So a case is measured once, by
`interleaved`, and each provider's test plays its samples back: `played` is the session's --benchmark-timer,
moved on by one sample per round."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

Call = Callable[[], Any]
K = TypeVar("K")
LEAST_ROUNDS = 3  # however long they take: a median and its quartiles


def synchronise(device: torch.device) -> None:
    """Wait for a device that works beside its host."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Call, device: torch.device) -> float:
    """Return the seconds of one call by the host's clock, the device idle before and after."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def processor_seconds(call: Call, device: torch.device) -> float:
    """Return the processor time of one call, of this process."""
    start = time.process_time()
    call()
    return time.process_time() - start


def of_threads() -> Callable[[Call, torch.device], float]:
    """Return the clock for calls on a CPU: with one thread the processor's time, which other work on the
    machine hardly touches."""
    return processor_seconds if torch.get_num_threads() == 1 else seconds


def device_seconds(call: Call, device: torch.device) -> float:
    """Return the seconds of one call by the device's own clock, where it has one.

    A synchronisation takes as long as a kernel.
    """
    if device.type != "cuda":
        return seconds(call, device)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleaved(
    calls: Mapping[K, Call],
    rounds: int,
    device: torch.device,
    *,
    most_seconds: float = float("inf"),
    before: Mapping[K, Call] | None = None,
    clock: Callable[[Call, torch.device], float] = seconds,
    times: Mapping[K, int] | None = None,
) -> dict[K, list[float]]:
    """Return the seconds of each call, a round at a time.

    Every round begins one call further on, so that each has every place. Warmed-up calls only: no sample is
    left out. `before` holds what runs ahead of each, outside the clock; `times` how often a call is made in a
    sample, which is then a part of that. Ends early, with whole rounds and no
    fewer than three, when `most_seconds` have passed."""
    names = list(calls)
    samples: dict[K, list[float]] = {name: [] for name in names}
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
                count = times[name] if times else 1
                samples[name].append(clock(burst(calls[name], count), device) / count)
    finally:
        if collecting:
            gc.enable()
    return samples


def burst(call: Call, count: int) -> Call:
    """Return so many calls as one."""

    def run() -> None:
        for _ in range(count):
            call()

    return call if count == 1 else run


def captured(call: Call, device: torch.device, warm: int = 1) -> Call:
    """Record a call as a CUDA graph, so that no launch waits for the host; elsewhere return it as it is.

    The `warm` calls before it compile, choose algorithms, and make what an engine keeps for a stream. A
    replay returns the recorded call's result, which the graph overwrites each time.
    """
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(warm):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    synchronise(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        kept = call()

    def replay() -> Any:
        graph.replay()
        return kept  # alive for as long as the graph writes there

    return replay


def machine_rates(device: torch.device, small: bool = False) -> dict[str, float]:
    """Return a Record's `machine`: what this device could do at most, measured now.

    The bytes a second of a large copy (read and written), and the FLOP/s of a large matrix product in
    float32, never TF32; on CUDA in bfloat16 and float16 too. The fastest of eight: what else runs only slows
    them."""
    torch.backends.cuda.matmul.allow_tf32 = False
    cuda = device.type == "cuda"
    elements, side = (1 << 20, 256) if small else (1 << 28, 8192) if cuda else (1 << 25, 2048)
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)

    def fastest(call: Call) -> float:
        return min(device_seconds(call, device) for _ in range(8))

    found = {"copy_bytes_per_second": 8 * elements / fastest(lambda: target.copy_(source))}
    kinds = {"": torch.float32} | ({"_bf16": torch.bfloat16, "_fp16": torch.float16} if cuda else {})
    for name, dtype in kinds.items():
        a = torch.randn(side, side, device=device).to(dtype)
        found[f"matmul{name}_flops_per_second"] = 2 * side**3 / fastest(lambda a=a: a @ a)
    return found


class Played:
    """A clock that stands still but for the samples that it plays."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def play(self, benchmark: Any, samples: list[float]) -> None:
        """Give the samples as rounds of pytest-benchmark's fixture, in the order in which they were taken."""
        rest = iter(samples)

        def advance() -> None:
            self.now += next(rest, 0.0)  # with --benchmark-disable it is called once

        benchmark.pedantic(advance, rounds=len(samples))


played = Played()
