"""Compares a trace with the model's own forward, once, on a part of the batch: what no watching sees shows
there (a closure, a global)."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastbn.engine.program.forward_run import ForwardRun
from fastbn.graph.trace import modes
from fastbn.graph.trace.arguments import Form
from fastbn.graph.trace.copies import copy_for_trial
from fastbn.graph.trace.draws import preserved, random_state, restore, same_numbers
from fastbn.graph.trace.outputs import Unformed, leaves
from fastbn.graph.trace.outside import Outside, of_model
from fastbn.graph.trace.tracer import Traced

# of a batch: at most so many images, of them one pixel of so many in each direction
PARTS = ((2, 4), (2, 2), (1, 1), (2, 1))

WORTH = 8 << 20  # bytes of parameters


@dataclasses.dataclass
class Trial:
    """The result of a trial: the outputs, the copy with the buffers that it left, and the state of the random
    numbers."""

    outputs: list[Any]
    model: nn.Module
    drawn: Any


def difference(
    model: nn.Module, forward: Callable[..., Any], traced: Traced, form: Form, tensors: list[Any]
) -> str:
    """Say in what a trace differs from the model's own forward, "" where in nothing. The forward is followed
    as it runs on a copy; where that does not say, the trace runs on another, from the same random numbers.
    Where the model's own forward raises there is nothing to compare with (a region takes half inputs to
    float32 parameters)."""
    outside = of_model(list(model.modules()), forward)
    with preserved(), unheard(), _unmarked(model, outside), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for given in (*_parts(tensors), tensors):
            try:
                why = _compared(model, forward, traced, form, given, outside)
            except _Refused:
                continue  # it may want more than a part
            return why
    return ""


def unheard() -> contextlib.AbstractContextManager[Any]:
    """Inside, hooks of saved tensors hear nothing: a checkpoint's, around a call, count what is saved."""
    if modes.MODES["saved-tensor hooks"]() is None:
        return contextlib.nullcontext()
    # detached: an output that its own backward saves would keep itself alive, and with it the whole graph
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, _same)


@contextlib.contextmanager
def _unmarked(model: nn.Module, outside: Outside) -> Iterator[None]:
    """Inside, forwards may write to what the copies share with the model: gradients, globals, modes."""
    modes_before = modes.modes()
    gradients = [(p, p.grad) for p in model.parameters()]
    for parameter, gradient in gradients:
        if gradient is not None:
            parameter.grad = None
    try:
        yield
    finally:
        modes.put_back(modes_before)
        outside.put_back()
        for parameter, gradient in gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient


def give_back_memory(model: nn.Module) -> None:
    """Return what was freed to the system, where the C library can say so and it is worth its time.

    A forward of the model's own leaves freed copies of its weights, which glibc would keep for good."""
    if sum(parameter.nbytes for parameter in model.parameters()) < WORTH:
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _same(tensor: Tensor) -> Tensor:
    return tensor


class _Refused(Exception):
    """The model's own forward raised."""


def _compared(
    model: nn.Module,
    forward: Callable[..., Any],
    traced: Traced,
    form: Form,
    tensors: list[Any],
    outside: Outside,
) -> str:
    outside.put_back()
    drawn = random_state()
    try:
        twin = copy_for_trial(model)
        followed = ForwardRun(twin, traced)
        expected = _trial(
            twin,
            lambda network, given: followed.run(lambda: _call(forward, network, form, given), given),
            tensors,
        )
    except Unformed as unformed:
        return str(unformed)
    except Exception as error:
        raise _Refused from error
    if followed.as_traced(drawn, expected.drawn):
        return ""
    restore(drawn)
    outside.put_back()
    try:
        ours = _trial(
            copy_for_trial(model), lambda network, given: _interpreted(network, traced, given), tensors
        )
    except Exception as error:
        return f"it raises {type(error).__name__}: {error}"
    if not same_numbers(ours.drawn, expected.drawn):
        return "it draws other random numbers"
    if len(ours.outputs) != len(expected.outputs):
        return "it returns another number of tensors"
    for mine, other in zip(ours.outputs, expected.outputs, strict=True):
        if not _alike(mine, other):
            return "its outputs are not the same"
    buffers = dict(ours.model.named_buffers())
    for name, other in expected.model.named_buffers():
        if not _alike(buffers.get(name), other):
            return f"it leaves another {name}"
    return ""


def _trial(model: nn.Module, run: Callable[[nn.Module, list[Any]], Any], tensors: list[Any]) -> Trial:
    given = [
        item.detach().clone().requires_grad_(item.requires_grad) if isinstance(item, Tensor) else item
        for item in tensors
    ]
    result = run(model, given)
    drawn = random_state()
    return Trial(leaves(result), model, drawn)


def _call(forward: Callable[..., Any], model: nn.Module, form: Form, tensors: list[Any]) -> Any:
    args, kwargs = form.filled(iter(tensors).__next__)
    return forward(model, *args, **kwargs)


def _interpreted(model: nn.Module, traced: Traced, tensors: list[Any]) -> Any:
    for name, constant in traced.constants.items():
        object.__setattr__(model, name, constant)
    return fx.Interpreter(model, graph=traced.graph).run(*tensors)


def _parts(tensors: list[Any]) -> Iterator[list[Any]]:
    """Yield parts of a batch: corners of two images, an image, two images, while all that is tried, by the
    model's forward and by the trace, costs less than one forward of the batch. A forward may refuse one: a
    head of a fixed size, a BatchNorm of one value a channel."""
    first = next((item for item in tensors if isinstance(item, Tensor) and item.dim()), None)
    if first is None or not len(first):
        return
    spent = 0.0
    for images, step in PARTS:
        number = min(images, len(first))
        share = number / step**2 / len(first)
        if spent + 2 * share < 1:
            yield [_cut(item, len(first), number, step) for item in tensors]
            spent += share  # it was refused, by the model's own forward


def _cut(item: Any, batch: int, images: int, step: int) -> Any:
    if not isinstance(item, Tensor) or item.dim() == 0:
        return item
    part = item[:images] if len(item) == batch else item
    if step > 1 and part.dim() == 4:
        part = part[..., : -(-part.shape[-2] // step), : -(-part.shape[-1] // step)]
    return part.detach().requires_grad_(item.requires_grad)


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
