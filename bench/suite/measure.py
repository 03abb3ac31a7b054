"""A case measured: everyone made ready and let through the gate, then timed in turn. The result is Rows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence

import torch

from bench.records.rows import HOPELESS, Row, reason
from bench.suite import clock, costs, gate
from bench.suite.cases import Case
from bench.suite.process import allocated, peak_beyond
from bench.suite.providers import saved_bytes
from bench.suite.steps import Provider, Ready
from fastbn.machine.devices import EnergyMeter, free_unused
from fastbn.planning.data_sheets import free_memory

WARM = 2  # steps between the gate and the clock
# times as long as the fastest: a step that also spoils the time limit is hopeless, and not taken again
FAR_BEHIND = 8
ENERGY_SECONDS = 2.0  # NVML's counter moves slowly
ROOM = 0.6  # of the free memory: what all providers of a case may save for their backwards together


Results = dict[str, Row]  # by provider


def steps(
    level: str,
    case: Case,
    everyone: Sequence[Provider],
    device: torch.device,
    rounds: int,
    most_seconds: float = float("inf"),
    machine: dict[str, float] | None = None,
) -> Results:
    """Measure a step of each provider, in turn; one after another, and marked as such, where they don't fit
    into memory together. Without the machine's rates there is no share of roofline."""
    torch._dynamo.reset()  # a case's compilations are its own
    wanted = gate.expected(case, device)
    found = {provider.name: provider.row(level, case) for provider in everyone}
    saved = sum(costs.plan(case, provider).saved for provider in everyone)
    alone = len(everyone) > 1 and saved > ROOM * free_memory(device)
    groups = [[p] for p in everyone] if alone else [list(everyone)]
    tried: list[Row] = []
    for group in groups:
        ready: dict[str, Ready] = {}
        share = most_seconds / len(groups) / len(group)
        for provider in reversed(group):  # fastbn first: who is hopeless is told by who is not
            row = found[provider.name]
            row.alone = alone or None
            try:
                ready[provider.name] = admit(row, case, provider, wanted, device, share, tried)
            except Exception as error:  # its row says what went wrong, and the others are measured
                row.failed = reason(error)
            tried.append(row)
        timed = [p for p in group if p.name in ready and not found[p.name].failed]
        calls = {provider.name: ready[provider.name].step for provider in timed}
        samples = clock.interleaved(calls, rounds, device, most_seconds=most_seconds / len(groups))
        for provider in timed:
            row = found[provider.name].time(samples[provider.name])
            if machine is not None and row.seconds:
                row.roofline_share = costs.roofline_share(case, provider, row.seconds, machine)
            row.energy_joules = energy(ready[provider.name], device)
        ready.clear()
        free_unused(device)
    return found


def admit(
    row: Row,
    case: Case,
    provider: Provider,
    wanted: torch.Tensor,
    device: torch.device,
    share: float = float("inf"),
    beside: Iterable[Row] = (),
) -> Ready:
    """Make a provider's step, compiled, let through the gate or not, and warm; the row then has what can be
    told before the clock.

    One whose first step shows that the fewest rounds would take more than its `share` of the case's seconds,
    and that it is far behind the fastest of the rows beside it, is hopeless: the row says so, and no second
    step is taken."""
    for name, value in costs.figures(case, provider).items():
        setattr(row, name, value)
    held = allocated(device)
    start = time.perf_counter()
    ready = provider.make(case, device)  # which compiles where it is a graph
    made = time.perf_counter()
    first = clock.seconds(ready.step, device)
    row.first_seconds = first + (made - start if provider.way == "graph" else 0.0)
    others = (own.first_seconds for own in beside if own.first_seconds and not own.failed)
    fastest = min(others, default=math.inf)
    if provider.way == "eager" and first > max(share / clock.LEAST_ROUNDS, FAR_BEHIND * fastest):
        row.failed = (
            f"{HOPELESS}: one step took {first:.1f} s, {first / fastest:.0f} times the fastest's "
            f"first {fastest:.2f} s"
        )
        return ready
    error, allowed = gate.error(ready, wanted), gate.allowed(case, provider)
    row.gradient_error = error if math.isfinite(error) else None
    if error > allowed:
        row.failed = f"gradients of γ and β are off by {error:.1e} against float64, allowed {allowed:.1e}"
        return ready
    # a graph's forward is not autograd's to look into
    row.saved_bytes = None if provider.way == "graph" else saved_bytes(ready)
    for _ in range(WARM):
        ready.step()
    row.peak_memory_bytes = peak_beyond(held, device)
    return ready


def energy(ready: Ready, device: torch.device) -> float | None:
    """Return the joules of one step, over seconds of nothing else; None where nothing counts them."""
    meter = EnergyMeter(device)
    if meter.joules() is None:
        return None
    begun, taken = time.perf_counter(), 0
    while time.perf_counter() - begun < ENERGY_SECONDS:
        ready.step()
        clock.synchronise(device)
        taken += 1
    joules = meter.joules()
    return None if joules is None else joules / taken
