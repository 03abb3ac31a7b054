"""The cost of a region from its graph alone: bytes moved, FLOPs, launches and bytes saved, of the fused plan
and of stock's.

    seconds ≥ max(bytes / bytes_per_second, FLOPs / flops_per_second)        FLOPs = 2·M·C·(C_in/groups)·KH·KW
    a convolution

In units of A = one activation, an identity block of two equal convolutions inside a chain: stock forward 17
A, backward 27 A (23 A with frozen weights), saved 4 A; fused 6 A, 9 A, saved 2 A; the fused mask of 1 bit an
element comes on top.

Counted   activations, their gradients and masks: a pass reads each tensor that it needs once, whole, unless a
          rule below says twice. Weights, and the gradients of trained ones, are counted too, in a field of
          their own: small but for wide layers at small batches.
Left out  vectors of one number a channel; casts and copies at a region's door; what a library does beside
          (transforms, workspaces); caches: where producer and consumer meet in one, less moves. Taps on the
          padding count as FLOPs, as is the custom.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

import torch

from fastbn.engine import walk
from fastbn.graph.activations import IDENTITY, RELU
from fastbn.graph.regions import Conv, Region, Shape
from fastbn.planning.cost import Cost, TrafficPass
from fastbn.planning.counting import CountingOperations, multiplied

K = TypeVar("K")


@dataclasses.dataclass(frozen=True)
class TrafficPlan:
    """A forward and a backward, launch by launch, and the bytes that the one saves for the other. A
    network's is its regions' sum."""

    forward: tuple[TrafficPass, ...] = ()
    backward: tuple[TrafficPass, ...] = ()
    saved: int = 0

    def __add__(self, other: TrafficPlan) -> TrafficPlan:
        return TrafficPlan(
            self.forward + other.forward, self.backward + other.backward, self.saved + other.saved
        )


@dataclasses.dataclass(frozen=True)
class TrafficCase:
    """A region and what it is called with. A single bool holds for every input, or for every BatchNorm.

    Its plans raise ValueError where a tuple is longer or shorter than that, Unfit for shapes that the region
    can't run."""

    region: Region
    inputs: tuple[Shape, ...]
    activation: int = 4  # bytes an element, of weights too
    gradient: int = 4
    wanted: bool | tuple[bool, ...] = False  # by input: whether it requires a gradient
    trains: bool | tuple[bool, ...] = True  # by BatchNorm: whether γ or β requires one
    batch: bool | tuple[bool, ...] = True  # by BatchNorm: statistics of the batch or frozen

    @functools.cached_property
    def shapes(self) -> dict[int, Shape]:
        """Return every value's shape; a join's raw outputs have the shape of its z."""
        return self.region.shapes(self.inputs)

    @functools.cached_property
    def elements(self) -> dict[int, int]:
        """Return the number of elements of every value."""
        return {value: math.prod(shape) for value, shape in self.shapes.items()}

    def a(self, value: int) -> int:
        """Return the bytes of a tensor of this value's shape in the forward's element size."""
        return self.elements[value] * self.activation

    def g(self, value: int) -> int:
        """Return the same in the backward's element size."""
        return self.elements[value] * self.gradient

    def live(self, trains_weights: bool = False) -> frozenset[int]:
        """Return the values that a gradient passes. trains_weights: as if every BatchNorm trained."""
        wanted, trains = (
            _each("wanted", range(self.region.inputs), self.wanted),
            _each("trains", self.region.convs, self.trains),
        )
        return walk.live_values(
            self.region,
            [*wanted.values()],
            [trained or trains_weights for trained in trains.values()],
        )

    def multiplied(self, conv: Conv, value: int) -> tuple[int, int]:
        """Return the weight's bytes and the FLOPs of this join's convolution; its input's and its weight's
        gradients cost as many."""
        return multiplied(conv, self.shapes[value], self.activation)


def _each(name: str, keys: Sequence[K], given: bool | tuple[bool, ...]) -> dict[K, bool]:
    if isinstance(given, bool):
        return dict.fromkeys(keys, given)
    if len(given) != len(keys):
        raise ValueError(f"{name} of length {len(given)} for a region that has {len(keys)}: give one each")
    return dict(zip(keys, given, strict=True))


def fused(case: TrafficCase) -> TrafficPlan:
    """Return the walk's plan (engine/walk.py), by an engine that reads and writes each tensor of an operation
    once.

    forward   y = conv(z): the first reader of a z reads what makes it (its ys, the residual) and writes it if
              anything else reads it, with its mask if z is live; later ones read z. A z that no convolution
              reads first is a pass of its own.
    backward  ds of a live value, one pass: reads ds of each path (its y too where statistics are the batch's)
              and each added term, the mask if one was saved, and the value's own ys, for the sums that every
              BatchNorm gets and for the other masks.
    saved     the ys and masks of live joins.
    """
    region, live, batch = case.region, case.live(), _each("batch", case.region.convs, case.batch)
    operations = CountingOperations(case.activation, case.gradient)
    modules: Any = [(_Conv(), _Norm(batch[conv] and not conv.bare)) for conv in region.convs]
    call = walk.Call(region, operations, modules, [None] * len(modules), case.shapes, live, torch.float32)
    inputs: Any = [operations.activation(shape) for shape in case.inputs]
    _, vectors, saved = walk.forward(call, inputs)
    kept: Any = list(saved)
    forward, operations.passes = operations.passes, []
    arriving: Any = [operations.arriving(case.shapes[z]) if z in live else None for z in region.outputs]
    gradients = walk.backward(call, arriving, vectors, saved)
    backward = operations.passes
    for place, value in enumerate(gradients.inputs, len(backward) - len(gradients.inputs)):
        if backward[place].name == "sum":
            backward[place] = dataclasses.replace(backward[place], name=f"input {value}")
    return TrafficPlan(tuple(forward), tuple(backward), sum(t.bytes for t in kept))


@dataclasses.dataclass(frozen=True)
class _Conv:
    """A convolution's module, as far as a walk asks."""

    bias: None = None


@dataclasses.dataclass(frozen=True)
class _Norm:
    """A BatchNorm's module, as far as a walk asks: whether it takes the batch's statistics."""

    training: bool
    running_mean: float = 0.0
    running_var: float = 0.0


def stock(case: TrafficCase, trains_weights: bool = False) -> TrafficPlan:
    """Return the plan of PyTorch's own operations under autograd, channels-last, one pass after another.

    forward   convolution reads x, writes y        BatchNorm reads y twice (statistics, then n), once where
              they are frozen; writes n addition reads two, writes one       ReLU reads its argument and
              writes z, in place or not
    backward  ReLU reads dz and z, writes ds; an addition hands the same ds to both sides for nothing
              BatchNorm reads ds and y for its sums, ds and y again for dy and writes it. Frozen: the sums
              only where γ, β train, dy from ds alone. No dy where the convolution needs none (first layer,
              frozen weight) convolution reads dy, writes dx if its source is live; a trained weight's
              gradient reads x and dy a value read k times: k−1 additions of gradients, each reads two, writes
              one
    saved     y by BatchNorm and z by ReLU, where live; x by a convolution whose y is live, even if its weight
    is frozen. Each once."""
    region, live = case.region, case.live(trains_weights)
    trains, batch = _each("trains", region.convs, case.trains), _each("batch", region.convs, case.batch)
    forward, backward = [], []
    saved: dict[Hashable, int] = {}
    terms = collections.Counter(live.intersection(region.outputs))  # gradients that come to a value

    for join in region.joins:
        a, name = case.a(join.value), join.convs[0].norm
        for conv in join.convs:
            weights, flops = case.multiplied(conv, join.value)
            if not conv.copies:
                forward.append(TrafficPass(conv.name, Cost(case.a(conv.source), a, weights, flops, 1)))
            if not conv.bare:
                forward.append(TrafficPass(conv.norm, Cost((1 + batch[conv]) * a, a, launches=1)))
            if (conv.source in live or trains_weights) and not conv.copies:
                saved[conv.source] = case.a(conv.source)
            if (
                join.value in live
                and not conv.bare
                and (conv.source in live or trains_weights or trains[conv])
            ):
                saved[conv.source if conv.copies else conv] = a
        if join.residual is not None or len(join.convs) > 1:
            forward.append(TrafficPass(f"{name} add", Cost(2 * a, a, launches=1)))
        if join.function != IDENTITY:
            forward.append(TrafficPass(f"{name} {join.function.name}", Cost(a, a, launches=1)))
            if join.value in live:  # a ReLU's result, which its reader saves too; the others' argument
                saved[join.value if join.function == RELU else ("n", join.value)] = a

    def accumulating(value: int, name: str) -> list[TrafficPass]:
        return [TrafficPass(f"{name} accumulate", Cost(2 * case.g(value), case.g(value), launches=1))] * (
            terms[value] - 1
        )

    for join in reversed(region.joins):
        if not terms[join.value]:
            continue
        a, g, name = case.a(join.value), case.g(join.value), join.convs[0].norm
        backward += accumulating(join.value, name)
        if join.function != IDENTITY:
            backward.append(TrafficPass(f"{name} {join.function.name}", Cost(g + a, g, launches=1)))
        for conv in join.convs:
            source, back = conv.source, conv.source in live
            onward = back or trains_weights
            sums, again = trains[conv] or (onward and batch[conv]), onward * (g + a * batch[conv])
            if (sums or onward) and not conv.bare:
                backward.append(TrafficPass(conv.norm, Cost(sums * (g + a) + again, onward * g, launches=1)))
            weights, flops = case.multiplied(conv, join.value)
            if back and not conv.copies:
                backward.append(TrafficPass(conv.name, Cost(g, case.g(source), weights, flops, 1)))
            if trains_weights and not conv.copies:
                written = weights // case.activation * case.gradient
                backward.append(
                    TrafficPass(f"{conv.name} weight", Cost(case.a(source) + g, 0, written, flops, 1))
                )
        terms.update(source for source in join.sources if source in live)
    for value in range(region.inputs):
        backward += accumulating(value, f"input {value}")
    return TrafficPlan(tuple(forward), tuple(backward), sum(saved.values()))
