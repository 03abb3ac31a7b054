"""Compares a trace with the model's own forward, once, on a part of the batch: what no watching sees shows
there (a closure, a global)."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastbn.graph.trace.arguments import Form
from fastbn.graph.trace.copies import copy_for_trial
from fastbn.graph.trace.draws import preserved, random_state, restore
from fastbn.graph.trace.outputs import Unformed, leaves
from fastbn.graph.trace.tracer import Traced

LEAST = 8  # of a batch this large, one image is enough


@dataclasses.dataclass
class Trial:
    """What a forward gave, and what it left in the buffers."""

    outputs: list[Any]
    buffers: dict[str, Tensor]


def difference(
    model: nn.Module, forward: Callable[..., Any], traced: Traced, form: Form, tensors: list[Any]
) -> str:
    """Say in what a trace differs from the model's own forward, "" where in nothing. Both run on copies, from
    the same random numbers. Where the model's own forward raises there is nothing to compare with (a region
    takes half inputs to float32 parameters)."""
    # those around a call (a checkpoint's) count what is saved
    unheard = torch.autograd.graph.saved_tensors_hooks(_same, _same)
    with preserved(), unheard, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for given in (_part(tensors), tensors):
            try:
                found = _compared(model, forward, traced, form, given)
            except _Refused:
                continue  # it may want more than a part
            return found
    return ""


def _same(tensor: Tensor) -> Tensor:
    return tensor


class _Refused(Exception):
    """The model's own forward raised."""


def _compared(
    model: nn.Module, forward: Callable[..., Any], traced: Traced, form: Form, tensors: list[Any]
) -> str:
    drawn = random_state()
    try:
        expected = _trial(copy_for_trial(model), lambda own, given: _call(forward, own, form, given), tensors)
    except Unformed as unformed:
        return str(unformed)
    except Exception as error:
        raise _Refused from error
    restore(drawn)
    try:
        found = _trial(copy_for_trial(model), lambda own, given: _interpreted(own, traced, given), tensors)
    except Exception as error:
        return f"it raises {type(error).__name__}: {error}"
    if len(found.outputs) != len(expected.outputs):
        return "it returns another number of tensors"
    for mine, other in zip(found.outputs, expected.outputs, strict=True):
        if not _alike(mine, other):
            return "its outputs are not the same"
    for name, other in expected.buffers.items():
        if not _alike(found.buffers.get(name), other):
            return f"it leaves another {name}"
    return ""


def _trial(model: nn.Module, run: Callable[[nn.Module, list[Any]], Any], tensors: list[Any]) -> Trial:
    given = [
        item.detach().clone().requires_grad_(item.requires_grad) if isinstance(item, Tensor) else item
        for item in tensors
    ]
    result = run(model, given)
    return Trial(leaves(result), dict(model.named_buffers()))


def _call(forward: Callable[..., Any], model: nn.Module, form: Form, tensors: list[Any]) -> Any:
    args, kwargs = form.filled(iter(tensors).__next__)
    return forward(model, *args, **kwargs)


def _interpreted(model: nn.Module, traced: Traced, tensors: list[Any]) -> Any:
    for name, constant in traced.constants.items():
        object.__setattr__(model, name, constant)
    return fx.Interpreter(model, graph=traced.graph).run(*tensors)


def _part(tensors: list[Any]) -> list[Any]:
    """One image of a batch, where all the tensors are of one."""
    sizes = {len(item) for item in tensors if isinstance(item, Tensor) and item.dim()}
    if (
        len(sizes) != 1
        or min(sizes) < LEAST
        or any(item.dim() == 0 for item in tensors if isinstance(item, Tensor))
    ):
        return tensors
    return [
        item[:1].detach().requires_grad_(item.requires_grad) if isinstance(item, Tensor) else item
        for item in tensors
    ]


def _alike(mine: Any, other: Any) -> bool:
    if not isinstance(other, Tensor) or not isinstance(mine, Tensor):
        return type(mine) is type(other) and repr(mine) == repr(other)
    same = (
        mine.shape == other.shape and mine.dtype == other.dtype and mine.requires_grad == other.requires_grad
    )
    if not same or not mine.numel():
        return same
    if not mine.is_floating_point():
        return torch.equal(mine, other)
    a, b, numbers = (
        mine.detach().double().nan_to_num(),
        other.detach().double().nan_to_num(),
        torch.finfo(mine.dtype),
    )
    near = (a - b).norm() <= 1e3 * numbers.eps * b.norm().clamp(min=numbers.tiny)
    return bool(near) and torch.equal(mine.isnan(), other.isnan())
