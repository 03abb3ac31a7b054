"""A region's cost from its graph alone: bytes moved, FLOPs, launches and bytes saved, of the fused plan and
of stock's.

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
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from fastbn.engine import walk
from fastbn.graph.activations import IDENTITY, RELU
from fastbn.graph.regions import Conv, Join, Region, Shape

K = TypeVar("K")


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
        return self.read + self.written + self.weights


@dataclasses.dataclass(frozen=True)
class TrafficPass:
    """One launch. Its name is its convolutions', else its BatchNorm's with what is done there
    ("layer1.0.bn2 relu")."""

    name: str
    cost: Cost


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


def total(passes: Iterable[TrafficPass]) -> Cost:
    return sum((each.cost for each in passes), Cost())


def roofline(cost: Cost, bytes_per_second: float, flops_per_second: float) -> float:
    """Return the seconds that a cost can't be done under: of a pass, or of a whole forward or backward, each
    by itself."""
    return max(cost.moved / bytes_per_second, cost.flops / flops_per_second)


@dataclasses.dataclass(frozen=True)
class TrafficCase:
    """A region and its call's shapes and dtypes. A single bool holds for every input, or for every BatchNorm.

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
    def elements(self) -> dict[int, int]:
        """Return the number of elements of every value; a join's raw outputs have as many each as its z."""
        return {value: math.prod(shape) for value, shape in self.region.shapes(self.inputs).items()}

    def a(self, value: int) -> int:
        """Return the bytes of a tensor of this value's shape in the forward's element size."""
        return self.elements[value] * self.activation

    def g(self, value: int) -> int:
        """Return its bytes in the backward's element size."""
        return self.elements[value] * self.gradient

    def bits(self, join: Join) -> int:
        """Return the bytes of what its derivative needs after an addition: a bit per element, or n itself; 0
        if it needs nothing."""
        return (
            -(-self.elements[join.value] // 8) if join.function.bit else self.a(join.value)
        ) * join.needs_mask

    def live(self, trains_weights: bool = False) -> frozenset[int]:
        wanted, trains = (
            _each("wanted", range(self.region.inputs), self.wanted),
            _each("trains", self.region.convs, self.trains),
        )
        return walk.live_values(
            self.region, [*wanted.values()], [own or trains_weights for own in trains.values()]
        )

    def multiplied(self, conv: Conv, value: int) -> tuple[int, int]:
        """Return the weight's bytes and the FLOPs of this join's convolution; its input's and its weight's
        gradients cost as many."""
        each = math.prod(conv.weight_shape[1:])
        return conv.channels * each * self.activation, 2 * each * self.elements[value]


def _each(name: str, keys: Sequence[K], given: bool | tuple[bool, ...]) -> dict[K, bool]:
    if isinstance(given, bool):
        return dict.fromkeys(keys, given)
    if len(given) != len(keys):
        raise ValueError(f"{name} of length {len(given)} for a region that has {len(keys)}: give one each")
    return dict(zip(keys, given, strict=True))


def fused(case: TrafficCase) -> TrafficPlan:
    """Return the walk's plan, with an engine that reads and writes each tensor of an operation once.

    forward   y = conv(z): the first reader of a z reads what makes it (its ys, the residual) and writes it if
              anything else reads it, with its mask if z is live; later ones read z. A z that no convolution
              reads first is a pass of its own.
    backward  ds of a live value, one pass: reads ds of each path (its y too where statistics are the batch's)
              and each added term, the mask if one was saved, and the value's own ys, for the sums that every
              BatchNorm gets and for the other masks.
    saved     the ys and masks of live joins.
    """
    region, live, batch = case.region, case.live(), _each("batch", case.region.convs, case.batch)
    uses, unformed = region.uses(), {join.value: join for join in region.joins}
    forward, backward = [], []

    def reading(value: int, keep: bool) -> Cost:
        join = unformed.pop(value, None)
        if join is None:
            return Cost(case.a(value))
        terms = len(join.convs) + (join.residual is not None)
        return Cost(terms * case.a(value), keep * case.a(value) + (value in live) * case.bits(join))

    def forming(value: int) -> TrafficPass:
        return TrafficPass(f"{unformed[value].convs[0].norm} form", reading(value, True) + Cost(launches=1))

    for join in region.joins:
        for conv in join.convs:
            uses[conv.source] -= 1
            own = Cost(0, case.a(join.value), *case.multiplied(conv, join.value), 1)
            keep = uses[conv.source] > 0 and not conv.copies  # what is copied is z itself
            forward.append(TrafficPass(conv.name or conv.norm, reading(conv.source, keep) + own))
        if join.residual is not None and join.residual in unformed:
            forward.append(forming(join.residual))
    forward += [forming(value) for value in region.outputs if value in unformed]

    # what each value's gradient reads, by tensor: what two terms read is read once
    arriving: dict[int, dict[Hashable, TrafficPass]] = {}
    for value in live.intersection(region.outputs):
        arriving[value] = {"dz": TrafficPass("", Cost(case.g(value)))}

    def gradient(value: int, name: str, own: int = 0) -> TrafficPass:
        found = arriving[value].values()
        # in the walk's order, the last layer first
        convs = " + ".join(each.name for each in found if each.name)
        return TrafficPass(convs or name, total(found) + Cost(own, case.g(value), launches=1))

    for join in reversed(region.joins):
        if join.value not in arriving:
            continue
        moved = 0 if join.linear else len(join.convs) * case.a(join.value) + case.bits(join)
        backward.append(gradient(join.value, f"{join.convs[0].norm} mask", moved))
        for source in live.intersection(join.sources):
            arriving.setdefault(source, {})["ds", join.value] = TrafficPass("", Cost(case.g(join.value)))
        for conv in join.convs:
            if conv.source in live:
                y = case.a(join.value) * batch[conv] * (not conv.bare)
                arriving[conv.source][conv] = TrafficPass(
                    conv.name, Cost(y, 0, *case.multiplied(conv, join.value))
                )
    backward += [gradient(value, f"input {value}") for value in range(region.inputs) if value in arriving]
    saving = [join for join in region.joins if join.value in live and not join.linear]
    saved = sum(len(join.convs) * case.a(join.value) + case.bits(join) for join in saving)
    return TrafficPlan(tuple(forward), tuple(backward), saved)


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
