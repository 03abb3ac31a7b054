"""The walk over a region, forward and backward: the same for every engine, whose operations it calls.

Joins in `Call.again` leave nothing behind but their vectors and what enters their span from outside: the
backward runs the span's convolutions a second time, by the same launches, normalised by the same μ and r, and
so to the same bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastbn.engine import batchnorm
from fastbn.engine.interface import (
    BackpropPath,
    LazyActivation,
    Mask,
    NormTarget,
    NormVectors,
    Operations,
    ProcessGroup,
)
from fastbn.engine.module_state import ModuleState
from fastbn.graph.regions import Conv, Join, Region, Shape

SavedPart = tuple[int, str]  # what is saved: a value and which part of it: "ys", "mask" or "z"


@dataclasses.dataclass
class Call:
    """A call of a region: its data, the modules' present state, and what its forward leaves for its
    backward."""

    region: Region
    operations: Operations
    modules: list[tuple[nn.Conv2d, nn.BatchNorm2d]]  # as region.convs
    packed: list[Any]
    shapes: dict[int, Shape]
    live: frozenset[int]  # the values through which gradient flows
    gradients: torch.dtype  # what they are stored in
    again: tuple[range, ...] = ()  # spans of joins that the backward computes a second time
    batch: list[bool] = dataclasses.field(default_factory=list)  # by convolution: the batch's statistics
    parts: list[SavedPart] = dataclasses.field(default_factory=list)  # what the forward saved, in order
    group: ProcessGroup | None = None  # whose batches BatchNorm takes as one
    held: ModuleState | None = None  # the modules as they were read for this call
    # in evaluation, with two more inputs: samples' tasks (N,) int32, and the tasks' vectors (4, T, channels)
    by_task: bool = False


def live_values(region: Region, inputs: list[bool], trains: list[bool]) -> frozenset[int]:
    """Return the values that a gradient passes: those behind an input, or a BatchNorm, that asks for one."""
    live = {value for value, wanted in enumerate(inputs) if wanted}
    uses = region.uses()
    trained = iter(trains)
    for join in region.joins:
        asks = [next(trained) for _ in join.convs]
        if uses[join.value] and (any(asks) or not live.isdisjoint(join.sources)):
            live.add(join.value)
    return frozenset(live)


def saved_parts(call: Call) -> list[SavedPart]:
    """Return what the forward saves, in order: raw outputs and masks of live joins; of a span that is run
    again the values that enter it, and the masks of values that nothing in it forms."""
    region = call.region
    parts: dict[SavedPart, None] = {}
    made: set[int] = set()
    formed: set[int] = set()
    entering: dict[SavedPart, None] = {}
    for span in call.again:
        formed_here, read = _made(region, span), _read(region, span)
        made |= formed_here
        formed |= formed_here & read
        if not call.live.isdisjoint(formed_here):
            entering |= dict.fromkeys((value, "z") for value in sorted(read - formed_here))
    for join in region.joins:
        if join.value in call.live:
            if join.value not in made and not join.linear:
                parts[join.value, "ys"] = None
            if join.needs_mask and join.value not in formed:
                parts[join.value, "mask"] = None
    return [*parts, *entering]


def _made(region: Region, span: range) -> set[int]:
    return {region.joins[i].value for i in span}


def _read(region: Region, span: range) -> set[int]:
    return {value for i in span for value in region.joins[i].sources}


class _Forward:
    """Runs joins in order. What is asked for in `parts` is in `saved` afterwards."""

    def __init__(
        self,
        call: Call,
        vectors: Tensor,
        values: dict[int, Tensor | LazyActivation],
        parts: Iterable[SavedPart],
        tasks: Tensor | None = None,
    ):
        self._call, self._vectors, self._tasks = call, vectors, tasks
        self._wanted = set(parts)
        self._joins = {join.value: join for join in call.region.joins}
        self._convs = dict(
            zip(call.region.convs, zip(call.modules, call.packed, call.batch, strict=True), strict=True)
        )
        self.values = values
        self.saved: dict[SavedPart, list[Tensor]] = {}
        for value, z in values.items():
            self._formed(value, z, None)

    def run(self, joins: Iterable[Join], uses: dict[int, int], statistics: bool) -> None:
        """Run the joins. uses: how often each value is still to be read, by the joins and elsewhere. Without
        `statistics` the vectors are there already, and the running ones stay as they are."""
        operations = self._call.operations
        for join in joins:
            ys, ready = [], []
            for conv in join.convs:
                (conv_module, norm_module), packed, batch = self._convs[conv]
                norm = NormVectors(self._vectors[..., conv.span], batch, tasks=self._tasks)
                target = (
                    NormTarget(norm_module, conv_module.bias, norm, self._call.group) if statistics else None
                )
                uses[conv.source] -= 1
                source = self.values[conv.source]
                keep_z = not conv.copies and (uses[conv.source] > 0 or (conv.source, "z") in self._wanted)
                y, left = operations.convolve(
                    conv, packed, source, keep_z, self._keeps_mask(conv.source, source), target
                )
                if left is not None:
                    self._formed(conv.source, y if conv.copies else left.z, left.mask)
                self._drop_unless(uses, conv.source)
                del source, left
                ys.append(y)
                ready.append(norm)
            residual = None
            if join.residual is not None:
                residual = self.form(join.residual)
                uses[join.residual] -= 1
                self._drop_unless(uses, join.residual)
            if (join.value, "ys") in self._wanted:
                self.saved[join.value, "ys"] = list(ys)
            self.values[join.value] = LazyActivation(tuple(ys), tuple(ready), residual, join.function)
            if statistics and uses[join.value] == 0:
                for norm in ready:
                    operations.ready(norm)

    def form(self, value: int) -> Tensor:
        activation = self.values[value]
        if isinstance(activation, LazyActivation) and self._is_raw(value):
            self._formed(value, activation.ys[0], None)
        elif isinstance(activation, LazyActivation):
            result = self._call.operations.form(activation, self._keeps_mask(value, activation))
            self._formed(value, result.z, result.mask)
        z = self.values[value]
        assert not isinstance(z, LazyActivation)
        return z

    def _is_raw(self, value: int) -> bool:
        """Return whether a value is a convolution's raw output itself, which no backward reads."""
        join = self._joins[value]
        alone = join.linear and join.residual is None and len(join.convs) == 1
        return alone and self._convs[join.convs[0]][0][0].bias is None

    def _keeps_mask(self, value: int, source: Tensor | LazyActivation) -> bool:
        return isinstance(source, LazyActivation) and (value, "mask") in self._wanted

    def _formed(self, value: int, z: Tensor | LazyActivation | None, mask: Any) -> None:
        if mask is not None:
            self.saved[value, "mask"] = [mask]
        if z is not None and not isinstance(z, LazyActivation):
            self.values[value] = z
            if (value, "z") in self._wanted:
                self.saved[value, "z"] = [z]

    def _drop_unless(self, uses: dict[int, int], value: int) -> None:
        if uses[value] == 0:
            del self.values[value]


def forward(call: Call, inputs: list[Tensor]) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Return the region's outputs; every BatchNorm's vectors (4, channels); and what the backward reads:
    `saved_parts`, flat. Running statistics are committed."""
    region = call.region
    if call.by_task:
        return _by_task(call, inputs[: region.inputs], *inputs[region.inputs :])
    wide = torch.promote_types(inputs[0].dtype, torch.float32)
    vectors = inputs[0].new_empty((4, region.channels), dtype=wide)
    call.batch.extend(batchnorm.uses_batch(norm) for _, norm in call.modules)
    call.parts = saved_parts(call)
    walk = _Forward(call, vectors, dict(enumerate(inputs)), call.parts)
    walk.run(region.joins, region.uses(), True)
    outputs = [walk.form(value) for value in region.outputs]
    return outputs, vectors, [tensor for part in call.parts for tensor in walk.saved[part]]


def _by_task(
    call: Call, inputs: list[Tensor], tasks: Tensor, vectors: Tensor
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Run as forward does, and keep nothing for a backward."""
    call.batch.extend(False for _ in call.modules)
    walk = _Forward(call, vectors, dict(enumerate(inputs)), (), tasks)
    walk.run(call.region.joins, call.region.uses(), False)
    return [walk.form(value) for value in call.region.outputs], vectors.new_empty(0), []


@dataclasses.dataclass(frozen=True)
class RegionGradients:
    """The results of a backward."""

    inputs: dict[int, Tensor]  # the gradients of the region's live inputs
    affine: Tensor  # (2, channels), fresh: every dγ and dβ; unwritten where no gradient came
    reached: frozenset[Conv]  # the convolutions to whose BatchNorms it came


def backward(
    call: Call, gradients: list[Tensor | None], vectors: Tensor, saved: list[Tensor]
) -> RegionGradients:
    """Walk back. Empties `saved`: a join's tensors go as soon as the walk is past it."""
    region, operations = call.region, call.operations
    flat = torch.empty_like(vectors[:2])
    reached: set[Conv] = set()
    kept = _kept(call, saved)
    saved.clear()
    span_of = {region.joins[i].value: span for span in call.again for i in span}
    packed = dict(zip(region.convs, zip(call.packed, call.batch, strict=True), strict=True))
    paths: dict[int, list[BackpropPath]] = {}
    added: dict[int, list[Tensor]] = {}
    for value, gradient in zip(region.outputs, gradients, strict=True):
        if gradient is not None:
            added.setdefault(value, []).append(gradient)
    for join in reversed(region.joins):
        back, terms = paths.pop(join.value, []), added.pop(join.value, [])
        if join.value not in call.live or not (back or terms):
            continue
        if (join.value, "ys") not in kept and not join.linear:
            kept |= _again(call, span_of[join.value], vectors, kept)
        ys, mask = kept.pop((join.value, "ys"), []), kept.pop((join.value, "mask"), [None])[0]
        kept.pop((join.value, "z"), None)  # only joins behind this one read it
        ready = tuple(NormVectors(vectors[:, conv.span], packed[conv][1]) for conv in join.convs)
        affine = tuple(flat[:, conv.span] for conv in join.convs)
        coefficients: list[Any] = [(norm.scale, None, None) for norm in ready]
        if not join.linear:
            made = Mask(join.function, mask, tuple(ys), ready, affine, call.group)
            ds, coefficients = operations.gradient(back, terms, made, call.shapes[join.value])
        elif back or len(terms) > 1:
            ds, _ = operations.gradient(back, terms, None, call.shapes[join.value])
        else:
            ds = terms[0]
        del back, terms
        reached.update(join.convs)
        raw = [ds] * len(join.convs) if join.linear else ys
        for conv, y, c in zip(join.convs, raw, coefficients, strict=True):
            if conv.source in call.live:
                paths.setdefault(conv.source, []).append(BackpropPath(conv, packed[conv][0], ds, y, c))
            else:
                operations.settle(c)
        if join.residual is not None and join.residual in call.live:
            added.setdefault(join.residual, []).append(ds)
    input_gradients = {}
    for value in range(region.inputs):
        if value in call.live and (value in paths or value in added):
            input_gradients[value], _ = operations.gradient(
                paths.pop(value, []), added.pop(value, []), None, call.shapes[value]
            )
    return RegionGradients(input_gradients, flat, frozenset(reached))


def _again(
    call: Call, span: range, vectors: Tensor, kept: dict[SavedPart, list[Tensor]]
) -> dict[SavedPart, list[Tensor]]:
    """Return the raw outputs of a span's live joins, and the masks that the forward did not save."""
    region = call.region
    made, read = _made(region, span), _read(region, span)
    values: dict[int, Tensor | LazyActivation] = {value: kept[value, "z"][0] for value in read - made}
    parts = [(value, part) for value in made & call.live for part in ("ys", "mask")]
    wanted = [part for part in parts if part not in kept]
    joins = [region.joins[i] for i in span]
    uses = dict.fromkeys(made | read, 0)
    for join in joins:
        for value in join.sources:
            uses[value] += 1
    walk = _Forward(call, vectors, values, wanted)
    walk.run(joins, uses, False)
    return walk.saved


def _kept(call: Call, saved: list[Tensor]) -> dict[SavedPart, list[Tensor]]:
    """Return the saved list by part."""
    convs = {join.value: len(join.convs) for join in call.region.joins}
    rest = iter(saved)
    return {
        part: [next(rest) for _ in range(convs[part[0]] if part[1] == "ys" else 1)] for part in call.parts
    }
