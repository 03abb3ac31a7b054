"""The cost of passes over memory: bytes moved, FLOPs, launches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a pass, or of many: costs add up. `sum(costs, Cost())` is a cost."""

    read: int = 0  # bytes of activations, gradients and masks
    written: int = 0
    weights: int = 0  # bytes of weights read, and of their gradients written
    flops: int = 0
    # operations called; stock's BatchNorm is one, though a GPU takes two or three kernels for it
    launches: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            *(getattr(self, field.name) + getattr(other, field.name) for field in dataclasses.fields(self))
        )

    @property
    def moved(self) -> int:
        """Return all bytes that are read or written."""
        return self.read + self.written + self.weights


@dataclasses.dataclass(frozen=True)
class TrafficPass:
    """One launch. Its name is its convolutions', else its BatchNorm's with what is done there
    ("layer1.0.bn2 relu")."""

    name: str
    cost: Cost


def total(passes: Iterable[TrafficPass]) -> Cost:
    """Return the sum of the passes' costs."""
    return sum((each.cost for each in passes), Cost())


def roofline(cost: Cost, bytes_per_second: float, flops_per_second: float) -> float:
    """Return the seconds that a cost can't be done under: of a pass, or of a whole forward or backward,
    each by itself."""
    return max(cost.moved / bytes_per_second, cost.flops / flops_per_second)
