"""A region as one function of autograd's: the walk forward, and what it left for the walk back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastbn.engine import walk
from fastbn.engine.executor import ForwardResult, Recording
from fastbn.engine.module_state import FrozenWeights, versions


class RegionFunction(torch.autograd.Function):
    """The autograd function of a region: its forward runs the walk, its backward the walk's backward."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[[walk.Call, list[Tensor]], ForwardResult],
        call: walk.Call,
        frozen: FrozenWeights,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        inputs: Any = tensors[: call.region.inputs]
        made = run(call, list(inputs))
        ctx.call, ctx.recording, ctx.frozen = made.call, made.recording, frozen
        ctx.dtypes = [None if t is None else t.dtype for t in tensors]
        ctx.save_for_backward(made.lease, made.vectors, *made.saved)
        # else views of rows, which autograd lets nobody edit in place
        outputs = tuple(z.detach() for z in made.outputs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(z for z, value in zip(outputs, call.region.outputs, strict=True) if value not in call.live)
        )
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            input_gradients = _backward(ctx, gradients)
        if torch.is_grad_enabled():  # create_graph=True
            input_gradients = _Once.apply(torch.empty(0, requires_grad=True), *input_gradients)
        return None, None, None, *input_gradients


class _Once(torch.autograd.Function):
    """Hands gradients on; differentiating them raises. (torch's once_differentiable lets that pass, as a
    constant, where no upstream gradient requires one itself.)"""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        return tuple(None if g is None else g.detach() for g in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        raise RuntimeError(
            "double backward through a fused region: fastbn computes first derivatives; use fuse(model, "
            "'stock')"
        )


def _backward(ctx: Any, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    call: walk.Call = ctx.call
    now = versions(ctx.frozen.weights)
    if now != ctx.frozen.versions:
        conv = next(c for c, a, b in zip(call.region.convs, now, ctx.frozen.versions, strict=True) if a != b)
        raise RuntimeError(
            f"{conv.name}.weight was modified in place between the forward and the backward; the gradient "
            "would belong to neither"
        )
    _, vectors, *saved = ctx.saved_tensors
    # unless the graph is retained: from here on `saved` alone holds them, and the walk lets go of each
    ctx.maybe_clear_saved_tensors()
    given = [
        None if g is None else g.to(call.gradients).contiguous(memory_format=torch.channels_last)
        for g in gradients
    ]
    recording: Recording | None = ctx.recording
    replayed = recording.backward(given, vectors, saved) if recording else None
    results = walk.backward(call, given, vectors, saved) if replayed is None else replayed
    needs, dtypes = ctx.needs_input_grad[3:], ctx.dtypes
    every = [results.inputs.get(value) for value in range(call.region.inputs)]
    sizes = [conv.channels for conv in call.region.convs]  # which follow each other in the flat vector
    for conv, *pair in zip(call.region.convs, *(row.split(sizes) for row in results.affine), strict=True):
        every += pair if conv in results.reached else (None, None)
    each = zip(every, needs, dtypes, strict=True)
    return tuple(
        [
            None if g is None or not needed else g if g.dtype is dtype else g.to(dtype)
            for g, needed, dtype in each
        ]
    )
