"""The hours that an experiment would take on this machine's CPU, estimated in a moment: the multiplications
of its runs, and the rate at which steps on record make them. Imports no torch.

    seconds = images · epochs · passes · FLOPs of a forward / (share · FLOP/s of a matrix product here)

A step of BatchNorm only has two passes over the convolutions, the forward and the input's gradient; one that
trains convolutions has three. `share` is what steps on record reach of their machine's matrix product: more
than 1 where the native engine makes fewer products than a convolution has."""

from __future__ import annotations

import dataclasses
import os
import time

from fastbn.choices import TRAINS_CONVOLUTIONS, train_terms
from fastbn.experiments.preset import Line, Preset, command
from fastbn.models.families import Spec, resolve
from fastbn.settings.arguments import parse
from fastbn.settings.config import Config

SIZES = {  # images to train on, to test on, classes, side, epochs where a line does not say
    "cifar10": (50_000, 10_000, 10, 32, 160),
    "cifar100": (50_000, 10_000, 100, 32, 160),
    "digits": (1_437, 360, 10, 32, 15),
    "imagenet": (1_281_167, 50_000, 1_000, 224, 90),
}
# of bench-amd-epyc-avx-512-2-threads-2026-11-30.json, the median of its float32 cases
RECORD = "AMD EPYC, AVX-512, 2 threads, 2026-11-30"
SHARES = {"fused": 1.73, "stock": 0.79}
RECORD_FLOPS = 192e9  # of a matrix product, there
# an LSTM's tweets a second there, of run-torri-lstm-bn-s0 and -all-s0, the median of their epochs
TWEETS = {"bn": 1_719, "all": 954}
GROWTH = {"wandb": (4, 2, 2)}  # channels of a stage over those of the one before


@dataclasses.dataclass(frozen=True)
class Rate:
    """FLOP/s of a matrix product of float32 here, and how many processes want a processor of how many."""

    flops: float
    busy: float = 1.0


def hours(preset: Preset, quick: bool, rate: Rate) -> float | None:
    """Return the hours of an experiment, or of its quick cut, all seeds one after the other; None where a
    line can't be estimated."""
    each = [line_hours(line, rate, preset.examples or 0) for line in preset.cut(quick)]
    known = [value for value in each if value is not None]
    return (1 if quick else preset.seeds) * sum(known) if len(known) == len(each) else None


def line_hours(line: Line, rate: Rate, tweets: int = 0) -> float | None:
    """Return the hours of one run of a line, with the test after each epoch; None where no step like it is on
    record. tweets: to train on, where a line reads words."""
    config = parse(command(line.settings))
    spec = _spec(config)
    trains = {term.name for term in train_terms(config.train)}
    alters = bool(trains & TRAINS_CONVOLUTIONS)
    if config.dataset == "tweets":
        each = TWEETS["all" if alters else "bn"] * rate.flops / RECORD_FLOPS
        return (config.limit_train or tweets) * config.resolved(10).epochs / each / 3600
    forward = multiplications(spec, SIZES[config.dataset][3])
    if not forward:
        return None
    train, test, _, _, epochs = SIZES[config.dataset]
    share = SHARES["stock" if alters or config.norm != "batch" else "fused"]
    passes = 0 if config.train == "none" else 3 if alters else 2
    images = passes * min(train, config.limit_train or train) + min(test, config.limit_test or test)
    return 2 * forward * images * config.resolved(epochs).epochs / (share * rate.flops) / 3600


def multiplications(spec: Spec, side: int) -> int:
    """Return the products that a forward of one image of side × side makes; 0 for a family without a formula
    here."""
    if spec.family == "wandb":
        return _bottlenecks(spec, side)
    return _resnet(spec, side) if spec.family in ("cifar", "imagenet") else 0


def rate() -> Rate:
    """Measure this machine: the best of some products of a fifth of a second in all."""
    import numpy as np

    size, seconds = 1024, list[float]()
    a, until = np.ones((size, size), np.float32), time.perf_counter() + 0.2
    while len(seconds) < 2 or time.perf_counter() < until:
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Rate(2 * size**3 / min(seconds[1:]), os.getloadavg()[0] / processors)


def source(rate: Rate) -> str:
    """Return the sentence that says what the hours are."""
    busy = " The machine is busy now: idle it is quicker." if rate.busy > 1.2 else ""
    return (
        "Hours are estimates for this machine's CPU, all seeds one after the other: from a matrix product, "
        f"{rate.flops / 1e9:.0f} GFLOP/s here, and the share of it that steps on record reach ({RECORD})."
        f"{busy} show NAME --hours measures a step of each line."
    )


def about(hours: float | None) -> str:
    """Return hours in one or two digits with their unit, or that there is no estimate."""
    if hours is None:
        return "no estimate"
    for unit, length in (("day", 24.0), ("hour", 1.0)):
        if hours >= 2 * length:
            return f"~{_round(hours / length):,} {unit}s"
    return f"~{_round(60 * hours)} min" if hours > 1 / 120 else "moments"


def _round(value: float) -> int:
    step = 10 ** max(len(str(round(value))) - 2, 0)
    return round(value / step) * step


def _spec(config: Config) -> Spec:
    family = config.family or ("imagenet" if config.dataset == "imagenet" else None)
    vocabulary = 7 if family == "lstm" else 0
    return resolve(config.depth, 10, config.width, family, stride_on=config.stride_on, vocabulary=vocabulary)


def _conv(inputs: int, outputs: int, kernel: int, side: int) -> int:
    return inputs * outputs * kernel**2 * side**2


def _resnet(spec: Spec, side: int) -> int:
    width = channels = spec.width
    if spec.family == "cifar":
        made = _conv(3, width, 3, side)
    else:
        side = -(-side // 2)
        made = _conv(3, width, 7, side)
        side = -(-side // 2)
    for i, blocks in enumerate(spec.blocks):
        inner = width << i
        wide = inner * (4 if spec.block == "bottleneck" else 1)
        for j in range(blocks):
            before, side = side, -(-side // 2) if i > 0 and j == 0 else side
            if spec.block == "bottleneck":
                first = side if spec.stride_on == "1x1" else before
                made += _conv(channels, inner, 1, first) + _conv(inner, inner, 3, side)
                made += _conv(inner, wide, 1, side)
            else:
                made += _conv(channels, inner, 3, side) + _conv(inner, inner, 3, side)
            if before != side or channels != wide:
                made += _conv(channels, wide, 1, side)
            channels = wide
    return made


def _bottlenecks(spec: Spec, side: int) -> int:
    channels = spec.width
    made = _conv(3, channels, 3, side)
    for i, growth in enumerate(GROWTH["wandb"]):
        before, side = side, -(-side // 2) if i > 0 else side
        inner, wide = channels, channels * growth
        made += _conv(channels, inner, 1, before) + _conv(channels, wide, 1, side)
        made += _conv(wide, inner, 1, side) + 2 * (_conv(inner, inner, 3, side) + _conv(inner, wide, 1, side))
        channels = wide
    return made
