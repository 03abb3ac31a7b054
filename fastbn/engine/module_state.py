"""The tensors and settings that a region's modules hold at a call. They are read at every call, all of them:
a parameter may have been exchanged, moved, frozen since. At depth 866 these are ten thousand things, so they
are read in passes that are Python's own loops in C."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

Pairs = list[tuple[nn.Conv2d, nn.BatchNorm2d]]
PARAMETERS, BUFFERS, VALUES = operator.attrgetter("_parameters"), operator.attrgetter("_buffers"), dict.values
SETTINGS, DICTIONARY = (
    operator.itemgetter("training", "track_running_stats", "momentum", "eps"),
    operator.attrgetter("__dict__"),
)
ADDRESS, DTYPE, SHAPE = Tensor.data_ptr, operator.attrgetter("dtype"), operator.attrgetter("shape")


@dataclasses.dataclass(frozen=True)
class FrozenWeights:
    """The frozen weights of a call, where they lay, and their versions."""

    weights: list[Tensor]
    addresses: tuple[int, ...]
    versions: list[int]


class ModuleState:
    """A region's modules. look() reads them; the rest is as they were then."""

    def __init__(self, pairs: Pairs):
        self._pairs, self._convs, self._norms = (
            pairs,
            [conv for conv, _ in pairs],
            [norm for _, norm in pairs],
        )
        self._tensors: list[Tensor | None] = []
        self._plain = False  # whether all that is read is parameters and buffers

    def look(self) -> None:
        """Note which tensors the modules now have."""
        dicts = itertools.chain(
            map(PARAMETERS, self._convs), map(PARAMETERS, self._norms), map(BUFFERS, self._norms)
        )
        tensors = list(itertools.chain.from_iterable(map(VALUES, dicts)))
        if (
            self._plain
            and len(tensors) == len(self._tensors)
            and all(map(operator.is_, tensors, self._tensors))
        ):
            return
        self._tensors = tensors
        self._plain = all(
            "weight" in m._parameters and "bias" in m._parameters for pair in self._pairs for m in pair
        )
        self.weights: list[Tensor] = [conv.weight for conv in self._convs]
        self.affine: list[Tensor | None] = [t for norm in self._norms for t in (norm.weight, norm.bias)]
        rest = [
            t
            for conv, norm in self._pairs
            for t in (conv.bias, norm.weight, norm.bias, *norm._buffers.values())
        ]
        self._present = [t for t in rest if t is not None]
        self._there = tuple(t is not None for t in rest)

    def frozen(self) -> FrozenWeights:
        return FrozenWeights(self.weights, addresses(self.weights), versions(self.weights))

    def sizes(self) -> tuple[list[torch.Size], list[int]]:
        """Return the weights' shapes, and the BatchNorms' channels."""
        return list(map(SHAPE, self.weights)), [norm.num_features for norm in self._norms]

    def state(self) -> Any:
        """Return every BatchNorm's settings, and where its tensors and the convolution's bias lie."""
        settings = tuple(map(SETTINGS, map(DICTIONARY, self._norms)))
        return settings, self._there, addresses(self._present), tuple(map(DTYPE, self._present))


def addresses(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """Return the address of each tensor's memory."""
    return tuple(map(ADDRESS, tensors))


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """Return how often each was written to, as autograd counts it; an inference tensor counts nothing."""
    return [0 if t.is_inference() else t._version for t in tensors]
