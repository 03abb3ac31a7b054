"""The cuts of the rolling kernels on a GPU, measured by shape, pass and width of storage.

The rule's own choice (engine/triton/tuning.py) against a few others a shape: bands of the other height, twice
the warps, bands of one row where an image has few, and of eight where it has many, which leave half as much
for the next layer to merge."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch

from bench.gpu.layer import Layer
from bench.gpu.measure import CAPABILITY
from bench.oracle import operations
from bench.suite.clock import Call
from bench.tune.compete import TOLERANCE, called, compete
from fastbn.engine.triton import tuning
from fastbn.engine.triton.engine import Triton
from fastbn.engine.triton.tuning import ROLLING
from fastbn.engine.triton.tuning_table import Choice, Key, shipped

SHAPES = ((16, 32), (32, 16), (64, 8), (64, 56))  # channels, size


def keys() -> list[Key]:
    """Return every shape, forward and backward, half and float32."""
    each = itertools.product(SHAPES, (False, True), (False, True))
    return [Key(CAPABILITY, backward, *shape, wide) for shape, backward, wide in each]


def candidates(key: Key) -> list[Choice]:
    """Return the candidates, the rule's own first."""
    choice = tuning.rule(key)
    bands = [2 if choice.rows == 4 else 4, *{16: [8], 64: [1]}.get(key.channels, [])]
    others = [dataclasses.replace(choice, rows=rows) for rows in bands]
    return [choice, *others, dataclasses.replace(choice, warps=2 * choice.warps if choice.warps < 8 else 4)]


def compiled(key: Key, images: int) -> None:
    """Compile every candidate once."""
    called(candidates(key), _Make(key, images))


def row(key: Key, images: int, rounds: int) -> dict[str, Any]:
    """Return the fastest choice for a shape, and what every candidate took."""
    make = _Make(key, images)
    middle, left_out = compete(candidates(key), make, TOLERANCE[make.dtype], rounds)
    best = min(middle, key=lambda choice: middle[choice])
    each = ", ".join(f"{us:.1f}" for us in middle.values())
    print(f"{key}: {best}, two layers {middle[best]:.1f} µs of {each}", flush=True)
    plain = dataclasses.asdict
    measured = [{**plain(choice), "microseconds": round(us, 2)} for choice, us in middle.items()]
    without = [{**plain(choice), "why": why} for choice, why in left_out.items()]
    return {**plain(key), **plain(best), "measured": measured, "left_out": without}


class _Make:
    """The maker of a choice's call: of two layers, for how one is cut is what the next has to merge."""

    def __init__(self, key: Key, images: int):
        self.key, self.dtype = key, torch.float32 if key.wide else torch.float16
        case = operations.Case("", images, key.size, key.size, key.channels, key.channels)
        self._layer = Layer(case, self.dtype)

    def __call__(self, choice: Choice) -> Call:
        engine = Triton(CAPABILITY, ROLLING, dataclasses.replace(shipped(), rolls={self.key: choice}))
        return self._layer.call(engine, self.key.backward, twice=True)
