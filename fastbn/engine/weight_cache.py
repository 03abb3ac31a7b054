"""A region's frozen weights as its engine multiplies by them: packed once, and again where one has
changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastbn.engine.interface import Engine
from fastbn.engine.module_state import FrozenWeights, Pairs
from fastbn.graph.regions import Conv, Region, Shape

# By convolution, the dtypes of activations and gradients, and the algorithm: the weight's address and
# version, an alias of it, and the weight as the engine packed it. A model's regions share them, in training
# and in evaluation.
WeightCache = dict[tuple[nn.Conv2d, torch.dtype, torch.dtype, str], tuple[tuple[int, int], Tensor, Any]]


class Packing:
    """Finds every weight's packed form for a call, or makes it."""

    def __init__(self, region: Region, engine: Engine, pairs: Pairs, packs: WeightCache):
        self._region, self._engine, self._pairs, self._packs = region, engine, pairs, packs
        self._algorithms: dict[tuple[Conv, tuple[int, int]], str] = {}
        self._last: tuple[Any, list[Any]] = None, []  # what was asked for, and found

    def __call__(
        self, frozen: FrozenWeights, dtype: torch.dtype, gradients: torch.dtype, shapes: dict[int, Shape]
    ) -> list[Any]:
        """For activations and gradients of these dtypes, and values of these shapes."""
        asked = dtype, gradients, id(shapes), frozen.addresses, frozen.versions
        if asked != self._last[0]:
            keys = zip(frozen.addresses, frozen.versions, strict=True)
            each = zip(self._region.convs, self._pairs, frozen.weights, keys, strict=True)
            self._last = (
                asked,
                [
                    self._one(conv, pair[0], w, key, dtype, gradients, shapes[conv.source][2:])
                    for conv, pair, w, key in each
                ],
            )
        return self._last[1]

    def _one(
        self, conv: Conv, module: nn.Conv2d, weight: Tensor, key: tuple[int, int], dtype: torch.dtype,
        gradients: torch.dtype,
        size: tuple[int, int],
    ) -> Any:  # fmt: skip
        if (conv, size) not in self._algorithms:
            self._algorithms[conv, size] = self._engine.algorithm(conv, size)
        place = module, dtype, gradients, self._algorithms[conv, size]
        found = self._packs.get(place)
        if found is None or found[0] != key:
            # the alias keeps this address from being given to another weight
            found = self._packs[place] = (
                key,
                weight.detach(),
                self._engine.pack(conv, weight, dtype, gradients, size),
            )
        return found[2]
