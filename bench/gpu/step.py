"""python -m bench.gpu step --config 866x128: a whole training step by every provider, and the project's bars.

stock     everything trains, or BatchNorm only; channels-last; eager in fp32, TF32, and under autocast in fp16
          and bf16; the last two also as one CUDA graph of the whole step, and compiled (to depth 56). No
          GradScaler anywhere, which favours stock.
fastbn    drop-in: torch.optim.SGD in a user's loop; fit: its own captured step, batch and augmentation
          included; replicas, in a --config of their own: a step of each of several networks side by side,
          seconds_per_replica a network's part of it.
Clock     the host's, around a burst of steps that ends synchronised. At depth 110 and below providers take
          turns; where their memory does not fit side by side, one follows the other ("alone": true).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import time

from bench.gpu.bars import bars
from bench.gpu.measure import DEVICE, LATE, UNTIMED, Sink, offers_mixed
from bench.gpu.networks import like_stock
from bench.records.rows import Row, reason
from bench.suite import clock
from bench.suite.cases import Case
from bench.suite.process import allocated, peak_beyond
from bench.suite.providers import in_every_precision, replicas
from bench.suite.steps import WHOLE, Provider
from fastbn.errors import is_out_of_memory
from fastbn.machine.devices import free_unused

NEEDS = {"compiled": 150}  # seconds that must be left for it to begin; of the others 20
MOST_ROUNDS = 50


@dataclasses.dataclass(frozen=True)
class Setting:
    """A case, and who takes its steps: every provider, or so many networks at a time."""

    case: Case
    replicas: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.case.depth}x{self.case.batch_size}" + ("-replicas" if self.replicas else "")

    def providers(self) -> list[Provider]:
        mixed = offers_mixed()
        if self.replicas:
            return replicas(self.replicas, "mixed" if mixed else "fp32")
        return in_every_precision(self.case, DEVICE, mixed)


CASES = Case(866, 128), Case(14, 128), Case(110, 128), Case(866, 1024), Case(50, 256, 224, "imagenet")
REPLICAS = [Setting(Case(depth, 128), (1, 2, 4, 8)) for depth in (866, 110)]
SETTINGS = {setting.name: setting for setting in (*map(Setting, CASES), *REPLICAS)}
SMALL = Setting(Case(8, 4, 6, width=16))
SMALL_REPLICAS = Setting(SMALL.case, (1, 2))


@functools.cache
def wrong(case: Case, small: bool, kind: str) -> str:
    """Return why fastbn's figures in this precision would be worth nothing, or "". A flip-free net of at most
    110 layers, against float64."""
    try:
        assert case.family is not None
        net = min(case.depth, 110), case.family, small
        for what, error, most in like_stock(*net, kind, True, False):
            if not error < most:
                return f"{what} is off by {error:.1e}, allowed {most:.1e}"
    except Exception as error:  # whatever it is, the figures are worth nothing
        return reason(error)
    return ""


def started(provider: Provider, case: Case, row: Row) -> clock.Call:
    """Return the step, taken three times; the row has the seconds of the first, and what it and the others
    hold at most in memory."""
    free_unused(DEVICE)
    held = allocated(DEVICE)
    made: list[clock.Call] = []
    row.more = {"way": provider.way, "replicas": provider.replicas}
    row.more["seconds_to_make"] = clock.seconds(lambda: made.append(provider.step(case, DEVICE)), DEVICE)
    (step,) = made
    row.first_seconds = clock.seconds(step, DEVICE)
    for _ in range(2):
        step()
    row.peak_memory_bytes = peak_beyond(held, DEVICE)
    return step


def timed(ready: list[tuple[Row, clock.Call]], budget: float, small: bool) -> None:
    """Warm up and time these in turn, all of them within a budget of seconds."""
    times = {}
    for row, step in ready:
        each = clock.seconds(step, DEVICE)
        warm = 0 if small else 20 if each < 0.1 else 3
        for _ in range(warm):
            step()
        times[row.provider] = 5 if each < 0.01 and not small else 1
        row.more = (row.more or {}) | {"steps_per_round": times[row.provider], "warm_ups": 4 + warm}
    calls, rounds = {row.provider: step for row, step in ready}, 2 if small else MOST_ROUNDS
    samples = clock.interleaved(calls, rounds, DEVICE, most_seconds=0.7 * budget, times=times)
    for row, _ in ready:
        row.time(samples[row.provider])
        if row.more and row.more["replicas"]:
            row.more["seconds_per_replica"] = (row.seconds or 0.0) / row.more["replicas"]


def start_again_if_broken(seconds: float) -> None:
    """Put another process in this one's place where CUDA is broken: an illegal access leaves a process
    nothing of it."""
    try:
        clock.synchronise(DEVICE)
    except RuntimeError:
        words = [*sys.argv[1:], "--resume", "--seconds", str(seconds)]
        os.execv(sys.executable, [sys.executable, "-m", "bench.gpu", *words])


def step(sink: Sink, setting: Setting, small: bool, seconds: float) -> int:
    """Measure one setting and return the number of failures."""
    deadline, case = time.monotonic() + seconds, setting.case
    together = case.depth <= 110 and case.family == "cifar"
    everyone = setting.providers()
    if DEVICE.type != "cuda":
        sink.leave_out("TF32, autocast, CUDA graphs, torch.compile: they are measured on CUDA")
    if case.depth > WHOLE and not setting.replicas:
        sink.leave_out(f"torch.compile: whole networks are compiled to depth {WHOLE}")
    if not offers_mixed():
        sink.leave_out("precision mixed: this version of fastbn does not offer it")
    ready: list[tuple[Row, clock.Call]] = []
    places: list[int] = []
    done = {row["provider"] for row in sink.rows}
    for number, provider in enumerate(everyone):
        if provider.name in done:
            continue
        row = provider.row("step", case)
        row.alone, row.more = None if together else True, {"way": provider.way}
        left = deadline - time.monotonic()
        if left < NEEDS.get(provider.way, 20) and not small:
            row.more["skipped"] = LATE
        elif why := "" if provider.stock else wrong(case, small, provider.precision):
            row.failed = f"not timed: {why}"
        else:
            own = None  # the memory of the one before goes back before this is made
            try:
                own = started(provider, case, row)
                if together:
                    ready.append((row, own))
                    places.append(len(sink.rows))
                    sink.add(**{**row.told(), "more": row.more | {"skipped": UNTIMED}})
                    continue
                timed([(row, own)], min(20.0, left / (len(everyone) - number)), small)
            except Exception as error:  # one provider's: the others are measured all the same
                if is_out_of_memory(error):
                    row.more["skipped"] = "runs out of the device's memory"
                else:
                    row.failed = reason(error)
                    sink.add(**row.told())
                    start_again_if_broken(deadline - time.monotonic())
                    continue
        sink.add(**row.told())
    if ready:
        timed(ready, max(30.0, min(120.0, deadline - time.monotonic() - 10)), small)
        for place, (row, _) in zip(places, ready, strict=True):
            sink.rows[place] = row.told()
            print(f"{row.provider}: {1e3 * (row.seconds or 0.0):.3f} ms")
    failures = [row for row in sink.rows if "failed" in row]
    sink.finish(failures=failures, bars=bars(setting.name, [Row(**row) for row in sink.rows]))
    return len(failures)
