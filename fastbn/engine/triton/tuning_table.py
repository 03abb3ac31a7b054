"""The table that `python -m bench.tune --engine triton` measured of GPUs, as it ships: a row where it was
measured, none elsewhere.

    launches      a row a capability: whether kernels begin before the one before them has ended
                  (kernels/triton/early_launch.py), which no count can judge: off where there is none
    convolutions  a row a layer: which kernel runs it, and how the one tap by tap is cut for it
    rolling       a row a rolling kernel and shape: how it is cut
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from fastbn.engine.algorithm import Algorithm
from fastbn.kernels.triton.conv import Tile

Measured = TypeVar("Measured")
TABLE = Path(__file__).with_name("tuning.json")
DEPENDENT = 90  # the capability from which kernels can begin before the one before them has ended


@dataclasses.dataclass(frozen=True)
class TunedLayer:
    """A layer as far as the choice among algorithms depends on it: a convolution of square taps, not grouped
    or spread, padded by half of them."""

    capability: int  # 90 for a Hopper GPU; 0 for the interpreter
    in_channels: int
    channels: int
    kernel: int
    stride: int
    size: int  # of the images: their width


@dataclasses.dataclass(frozen=True)
class Way:
    """The algorithm that runs a layer, and the cuts of the kernels that run it tap by tap."""

    algorithm: Algorithm
    forward: Tile
    backward: Tile


@dataclasses.dataclass(frozen=True)
class Key:
    """A launch as far as a rolling kernel's configuration depends on it."""

    capability: int  # 90 for a Hopper GPU; 0 for the interpreter
    backward: bool
    channels: int
    size: int  # of the images: their width
    wide: bool  # float32 storage


@dataclasses.dataclass(frozen=True)
class Choice:
    """The cut of a rolling kernel."""

    row: int  # products of a row of a program
    rows: int  # of its band
    warps: int
    keep: bool  # the weights in shared memory from the start


def read(what: str) -> list[dict[str, Any]]:
    """Return the shipped rows of a part, as `python -m bench.tune --engine triton` measured them; none of a
    device that it has not run on."""
    rows: list[dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))[what]
    return rows


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The measurements of GPUs, as an engine takes them. Without any, everything goes by rule.

    >>> Tuning().begins_early(90)
    False
    """

    ways: Mapping[TunedLayer | None, Way] = dataclasses.field(default_factory=dict)  # what runs layers
    rolls: Mapping[Key, Choice] = dataclasses.field(default_factory=dict)  # how rolling kernels are cut
    early: frozenset[int] = frozenset()  # the capabilities whose kernels do better if they begin early

    def begins_early(self, device: int) -> bool:
        """Return whether this capability's kernels are launched to begin before the one before them has
        ended."""
        return device >= DEPENDENT and device in self.early


@functools.cache
def shipped() -> Tuning:
    """Return what the shipped table holds."""
    ways: dict[TunedLayer | None, Way] = {
        _of(TunedLayer, row): Way(
            Algorithm(row["algorithm"]), Tile(**row["forward"]), Tile(**row["backward"])
        )
        for row in read("convolutions")
    }
    rolls = {_of(Key, row): _of(Choice, row) for row in read("rolling")}
    return Tuning(ways, rolls, frozenset(row["capability"] for row in read("launches") if row["dependent"]))


def _of(kind: type[Measured], row: dict[str, Any]) -> Measured:
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: row[name] for name in names})
