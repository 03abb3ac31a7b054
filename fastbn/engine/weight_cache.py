"""A region's frozen weights as its engine multiplies by them: packed once, and again where one has
changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastbn.engine.algorithm import Algorithm
from fastbn.engine.interface import Engine
from fastbn.engine.module_state import FrozenWeights, Pairs
from fastbn.graph.regions import Conv, Region, Shape

# By convolution, the dtypes of activations and gradients, and the algorithm: the weight's address and
# version, an alias of it, and the weight as the engine packed it. A model's regions share them, in training
# and in evaluation.
WeightCache = dict[tuple[nn.Conv2d, torch.dtype, torch.dtype, Algorithm], tuple[tuple[int, int], Tensor, Any]]


class Packing:
    """Finds every weight's packed form for a call, or makes it."""

    def __init__(self, region: Region, engine: Engine, pairs: Pairs, packs: WeightCache):
        self._region, self._engine, self._pairs, self._packs = region, engine, pairs, packs
        self._choices: dict[tuple[Shape, ...], list[Algorithm]] = {}
        self._last: tuple[Any, list[Any]] = None, []  # what was asked for, and found

    def __call__(
        self, frozen: FrozenWeights, dtype: torch.dtype, gradients: torch.dtype, shapes: dict[int, Shape]
    ) -> list[Any]:
        """Return the packed weights for activations and gradients of these dtypes, and values of these
        shapes."""
        asked = dtype, gradients, id(shapes), frozen.addresses, frozen.versions
        if asked != self._last[0]:
            keys = zip(frozen.addresses, frozen.versions, strict=True)
            convs, sources = self._region.convs, tuple(shapes[conv.source] for conv in self._region.convs)
            if sources not in self._choices:
                self._choices[sources] = self._engine.choices(convs, shapes)
            each = zip(convs, self._pairs, frozen.weights, keys, sources, self._choices[sources], strict=True)
            self._last = (
                asked,
                [
                    self._one(conv, pair[0], w, key, dtype, gradients, source[2:], by)
                    for conv, pair, w, key, source, by in each
                ],
            )
        return self._last[1]

    def _one(
        self, conv: Conv, module: nn.Conv2d, weight: Tensor, key: tuple[int, int], dtype: torch.dtype,
        gradients: torch.dtype, size: tuple[int, int], by: Algorithm,
    ) -> Any:  # fmt: skip
        place = module, dtype, gradients, by
        packed = self._packs.get(place)
        if packed is None or packed[0] != key:
            # the alias keeps this address from being given to another weight
            packed = self._packs[place] = (
                key,
                weight.detach(),
                self._engine.pack(conv, weight, dtype, gradients, size, by),
            )
        return packed[2]
