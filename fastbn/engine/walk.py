"""The walk over a region, forward and backward: the same for every engine, which carries out each step."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from fastbn.engine import norms
from fastbn.engine.graph import Conv, Region, Shape
from fastbn.engine.operations import Activation, Engine, Mask, Norm, Path, Target


@dataclasses.dataclass
class Call:
    """One call of a region: its data, the modules' present state, and what its forward leaves for its backward."""

    region: Region
    engine: Engine
    modules: list[tuple[nn.Conv2d, nn.BatchNorm2d]]  # as region.convs
    packed: list[Any]
    shapes: dict[int, Shape]
    live: set[int]  # the values through which gradient flows
    gradients: torch.dtype  # what they are stored in
    batch: list[bool] = dataclasses.field(default_factory=list)  # by convolution: statistics of the batch or frozen


def live_values(region: Region, inputs: list[bool], trains: list[bool]) -> set[int]:
    """The values that a gradient passes: those behind an input, or a BatchNorm, that asks for one."""
    live = {value for value, wanted in enumerate(inputs) if wanted}
    uses = region.uses()
    trained = iter(trains)
    for join in region.joins:
        own = [next(trained) for _ in join.convs]
        if uses[join.value] and (any(own) or not live.isdisjoint(join.sources)):
            live.add(join.value)
    return live


def forward(call: Call, inputs: list[Tensor]) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """The region's outputs; every BatchNorm's vectors (4, channels); and what the backward reads: raw outputs and masks of
    live joins, in order. Running statistics are committed."""
    region, engine = call.region, call.engine
    wide = torch.promote_types(inputs[0].dtype, torch.float32)
    vectors = inputs[0].new_empty((4, region.channels), dtype=wide)
    values: dict[int, Tensor | Activation] = dict(enumerate(inputs))
    uses = region.uses()
    saved: dict[int, list[Tensor]] = {}
    join_of = {join.value: join for join in region.joins}
    modules, packs = iter(call.modules), iter(call.packed)

    def keeps_mask(value: int) -> bool:
        return value in call.live and join_of[value].needs_mask

    def formed(value: int, z: Tensor | None, mask: Any) -> None:
        if mask is not None:
            saved[value].append(mask)
        if z is not None:
            values[value] = z

    def form(value: int) -> Tensor:
        activation = values[value]
        if isinstance(activation, Activation):
            result = engine.form(activation, keeps_mask(value))
            formed(value, result.z, result.mask)
        z = values[value]
        assert isinstance(z, Tensor)
        return z

    for join in region.joins:
        ys, ready = [], []
        for conv in join.convs:
            conv_module, norm_module = next(modules)
            norm = Norm(vectors[:, conv.span], norms.uses_batch(norm_module))
            call.batch.append(norm.batch)
            target = Target(norm_module, conv_module.bias, norm)
            uses[conv.source] -= 1
            source = values[conv.source]
            keep_mask = isinstance(source, Activation) and keeps_mask(conv.source)
            y, left = engine.convolve(conv, next(packs), source, uses[conv.source] > 0, keep_mask, target)
            if left is not None:
                formed(conv.source, left.z, left.mask)
            if uses[conv.source] == 0:
                del values[conv.source]
            ys.append(y)
            ready.append(norm)
        residual = None
        if join.residual is not None:
            residual = form(join.residual)
            uses[join.residual] -= 1
            if uses[join.residual] == 0:
                del values[join.residual]
        saved[join.value] = list(ys) if join.value in call.live else []
        values[join.value] = Activation(tuple(ys), tuple(ready), residual, join.relu)
        if uses[join.value] == 0:
            for norm in ready:
                engine.ready(norm)
    outputs = [form(value) for value in region.outputs]
    return outputs, vectors, [tensor for join in region.joins for tensor in saved[join.value]]


def backward(
    call: Call, gradients: list[Tensor | None], vectors: Tensor, saved: list[Tensor]
) -> tuple[dict[int, Tensor], dict[Conv, Tensor]]:
    """The gradients of the region's live inputs; and of each BatchNorm that the gradient reached, its (dγ, dβ) as a (2, C)
    view of one fresh flat tensor. Empties `saved`: a join's tensors go as soon as the walk is past it."""
    region, engine = call.region, call.engine
    flat = torch.empty_like(vectors[:2])
    affine: dict[Conv, Tensor] = {}
    kept = _kept(call, saved)
    saved.clear()
    packed = dict(zip(region.convs, zip(call.packed, call.batch, strict=True), strict=True))
    paths: dict[int, list[Path]] = {}
    added: dict[int, list[Tensor]] = {}
    for value, gradient in zip(region.outputs, gradients, strict=True):
        if gradient is not None:
            added.setdefault(value, []).append(gradient)
    for join in reversed(region.joins):
        back, terms = paths.pop(join.value, []), added.pop(join.value, [])
        if join.value not in call.live or not (back or terms):
            continue
        ys, mask = kept.pop(join.value)
        ready = tuple(Norm(vectors[:, conv.span], packed[conv][1]) for conv in join.convs)
        own = tuple(flat[:, conv.span] for conv in join.convs)
        ds, coefficients = engine.gradient(back, terms, Mask(join.relu, mask, tuple(ys), ready, own), call.shapes[join.value])
        del back, terms
        affine.update(zip(join.convs, own, strict=True))
        for conv, y, c in zip(join.convs, ys, coefficients, strict=True):
            if conv.source in call.live:
                paths.setdefault(conv.source, []).append(Path(conv, packed[conv][0], ds, y, c))
            else:
                engine.settle(c)
        if join.residual is not None and join.residual in call.live:
            added.setdefault(join.residual, []).append(ds)
    found = {}
    for value in range(region.inputs):
        if value in call.live and (value in paths or value in added):
            found[value], _ = engine.gradient(paths.pop(value, []), added.pop(value, []), None, call.shapes[value])
    return found, affine


def _kept(call: Call, saved: list[Tensor]) -> dict[int, tuple[list[Tensor], Tensor | None]]:
    """The saved list, by join: its raw outputs, and its mask if it has one."""
    found: dict[int, tuple[list[Tensor], Tensor | None]] = {}
    rest = iter(saved)
    for join in call.region.joins:
        if join.value in call.live:
            ys = [next(rest) for _ in join.convs]
            found[join.value] = (ys, next(rest) if join.needs_mask else None)
    return found
