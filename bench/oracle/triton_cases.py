"""The convolutions that the Triton kernels are held to, each with its reason and its algorithm."""

from __future__ import annotations

import dataclasses

from bench.oracle.operations import Case
from fastbn.engine.triton.tuning import LIBRARY, ROLLING, TAPS


@dataclasses.dataclass(frozen=True)
class Routed(Case):
    """A case, and the algorithm that it tests."""

    by: str = TAPS


CASES = [
    Routed("the CIFAR stem, three channels as one axis with the taps", 2, 6, 5, 3, 16),
    Routed("channels that are no multiple of 16", 2, 5, 7, 24, 40),
    Routed("more channels than a block reads and writes", 1, 4, 3, 72, 80),
    Routed("channels that are no multiple of 8: z is formed beforehand", 2, 3, 4, 12, 20),
    Routed("a projection's 3×3, both extents odd", 2, 7, 5, 16, 32, stride=2),
    Routed("the same, both extents even", 1, 6, 8, 16, 32, stride=2),
    Routed(
        "a projection's 1×1, which reads every other pixel", 2, 5, 7, 16, 32, kernel=1, stride=2, padding=0
    ),
    Routed("a bottleneck's 1×1", 2, 3, 5, 32, 16, kernel=1, padding=0),
    Routed("the ImageNet stem", 1, 9, 11, 3, 16, kernel=7, stride=2, padding=3),
    Routed("one pixel", 3, 1, 1, 16, 32),
    Routed("a dilated kernel, padded beyond its reach", 1, 6, 5, 8, 8, padding=2, dilation=2),
    Routed("stride 3, kernel 5", 1, 9, 10, 8, 8, kernel=5, stride=3, padding=2),
    Routed("no padding: some pixels belong to no output", 1, 6, 5, 16, 16, padding=0),
    Routed("rolling pairs, nothing a multiple of anything", 3, 7, 5, 16, 16, by=ROLLING),
    Routed("rolling pairs, several images a program", 5, 8, 8, 16, 16, by=ROLLING),
    Routed("rolling pairs, several strips a row", 1, 5, 37, 16, 16, by=ROLLING),
    Routed("rolling pairs, 32 channels", 2, 6, 9, 32, 32, by=ROLLING),
    Routed("rolling single pixels, 64 channels", 2, 5, 6, 64, 64, by=ROLLING),
    Routed("rolling, one pixel", 2, 1, 1, 16, 16, by=ROLLING),
    Routed("rolling pairs, every program full", 4, 8, 8, 16, 16, by=ROLLING),
    Routed("rolling single pixels, every program full", 2, 8, 8, 64, 64, by=ROLLING),
    Routed("groups, by the library", 2, 5, 4, 24, 24, groups=3, by=LIBRARY),
    Routed("many channels, by the library", 1, 3, 4, 136, 144, stride=2, by=LIBRARY),
]
