"""A region as a module: one autograd function around the walk, and the region's own nodes for the calls that it can't take."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastbn.engine import norms, segments, walk
from fastbn.engine.graph import Conv, Region, Shape, Unfit
from fastbn.engine.operations import Engine, Group
from fastbn.engine.replay import Made, Replayed
from fastbn.errors import UsageError

# By convolution, the dtypes of activations and gradients, and the algorithm: the weight's address and version, an alias of it, and the
# weight as the engine packed it.
Packs = dict[tuple[nn.Conv2d, torch.dtype, torch.dtype, str], tuple[tuple[int, int], Tensor, Any]]

_MIXED: contextvars.ContextVar[torch.dtype | None] = contextvars.ContextVar("mixed", default=None)
_GROUP: contextvars.ContextVar[Group | None] = contextvars.ContextVar("group", default=None)


@contextlib.contextmanager
def synchronised(group: Group | None) -> Iterator[None]:
    """Inside, BatchNorms that take the batch's statistics take those of the group's batches. What would run stock, by this process's
    statistics alone, raises UsageError instead."""
    token = _GROUP.set(group)
    try:
        yield
    finally:
        _GROUP.reset(token)


def refuse_stock(why: str, norms: Iterable[nn.Module]) -> None:
    """Raises UsageError where BatchNorms that should take a group's statistics would run stock."""
    if _GROUP.get() is not None and any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in norms):
        raise UsageError(f"--sync-bn: a BatchNorm would run stock, by this rank's statistics alone: {why}; leave --sync-bn out")


@contextlib.contextmanager
def mixed(gradients: torch.dtype = torch.bfloat16) -> Iterator[None]:
    """Inside, regions store activations in float16, which BatchNorm keeps in range, and gradients in bfloat16, which needs no loss
    scaling: no product mixes the two where weights are frozen. What goes in and comes out is float32. The Triton engine's alone."""
    token = _MIXED.set(gradients)
    try:
        yield
    finally:
        _MIXED.reset(token)


class FusedRegion(nn.Module):
    """Runs a region by an engine. `stock` is the same region as ordinary nodes: it takes the calls that do not fit."""

    def __init__(
        self, region: Region, engine: Engine, modules: list[tuple[nn.Conv2d, nn.BatchNorm2d]], stock: fx.GraphModule, packs: Packs
    ):
        super().__init__()
        self.region, self.engine = region, engine
        self.pairs = modules  # in a list: they are the model's own submodules, not this one's
        self._stock = [stock]
        self._packs = packs
        self._shapes: dict[tuple[Shape, ...], dict[int, Shape]] = {}
        self._algorithms: dict[tuple[Conv, tuple[int, int]], str] = {}
        self._segments: dict[Any, tuple[range, ...]] = {}
        self._warned: set[str] = set()
        self._replays = engine.replays()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        try:
            shapes = self._check(inputs)
        except Unfit as unfit:
            refuse_stock(str(unfit), (norm for _, norm in self.pairs))
            if str(unfit) not in self._warned:
                self._warned.add(str(unfit))
                warnings.warn(f"fastbn runs {self.region.convs[0].name} to {self.region.convs[-1].norm} stock: {unfit}", stacklevel=2)
            return self._stock[0](*inputs)
        device, dtype = inputs[0].device.type, storage_dtype(inputs[0])
        is_mixed = _mixes(inputs[0])
        gradients = _MIXED.get() or dtype if is_mixed else dtype
        plain = all(x.is_contiguous() for x in inputs)  # what comes in NCHW goes out NCHW, as stock does
        with torch.autocast(device, enabled=False), torch.cuda.device_of(inputs[0]):  # Triton launches on the current device
            cast = [x.to(dtype).contiguous(memory_format=torch.channels_last) for x in inputs]
            affine = [t for _, norm in self.pairs for t in (norm.weight, norm.bias)]
            own = zip(self.region.convs, self.pairs, strict=True)
            packed = [self._pack(conv, module, dtype, gradients, shapes[conv.source]) for conv, (module, _) in own]
            call = walk.Call(self.region, self.engine, self.pairs, packed, shapes, set(), gradients, group=_GROUP.get())
            if torch.is_grad_enabled():
                trains = [any(t is not None and t.requires_grad for t in (norm.weight, norm.bias)) for _, norm in self.pairs]
                call.live = walk.live_values(self.region, [x.requires_grad for x in cast], trains)
                if (policy := segments.policy()) is not None:
                    call.again = self._spans(shapes, dtype.itemsize, policy)
            if call.live.isdisjoint(self.region.outputs):
                with torch.no_grad():
                    outputs = tuple(self._replays.forward(call, cast).outputs)
            else:
                outputs = _Function.apply(self._replays.forward, call, *cast, *affine)
            if is_mixed:
                outputs = tuple(z.float() for z in outputs)
            return tuple(z.contiguous() for z in outputs) if plain else outputs

    def _spans(self, shapes: dict[int, Shape], itemsize: int, policy: segments.Recompute) -> tuple[range, ...]:
        key = tuple(shapes[value] for value in range(self.region.inputs)), itemsize, policy
        if key not in self._segments:
            self._segments[key] = segments.spans(self.region, shapes, itemsize, policy)
        return self._segments[key]

    def _check(self, inputs: tuple[Tensor, ...]) -> dict[int, Shape]:
        """Every value's shape; raises Unfit if this call is not one for the walk."""
        for x in inputs:
            if not isinstance(x, Tensor):
                raise Unfit(f"an input is {x!r}, not a tensor")
            if x.dim() != 4 or not x.is_floating_point():
                raise Unfit(f"an input is a {x.dtype} tensor of shape {tuple(x.shape)}, not (N, C, H, W) of floats")
            if x.device != inputs[0].device or not self.engine.takes(x.device, storage_dtype(inputs[0])):
                raise Unfit(f"the {self.engine.name} engine does not take {storage_dtype(inputs[0])} on {x.device}")
        for conv, (module, norm) in zip(self.region.convs, self.pairs, strict=True):
            if module.weight.shape != conv.weight_shape or norm.num_features != conv.channels:
                raise Unfit(f"{conv.name} or {conv.norm} has another shape than it says")
        given: Any = tuple(tuple(x.shape) for x in inputs)
        if given not in self._shapes:
            self._shapes[given] = self.region.shapes(given)
        shapes = self._shapes[given]
        pairs, group = iter(self.pairs), _GROUP.get()
        if group is not None and not self.engine.groups:
            raise UsageError(f"--sync-bn: the {self.engine.name} engine has none; use --engine reference or native, or leave --sync-bn out")
        for join in self.region.joins:
            n, _, h, w = shapes[join.value]
            if any([norms.uses_batch(next(pairs)[1]) for _ in join.convs]) and (group.rows(n * h * w) if group else n * h * w) == 1:
                raise Unfit(f"{join.convs[0].norm} has one value per channel")
        return shapes

    def _pack(self, conv: Conv, module: nn.Conv2d, dtype: torch.dtype, gradients: torch.dtype, source: Shape) -> Any:
        """The packed weight, made again when the parameter's storage or contents have changed."""
        weight = module.weight
        key = (weight.data_ptr(), _version(weight))
        size = source[2:]
        if (conv, size) not in self._algorithms:
            self._algorithms[conv, size] = self.engine.algorithm(conv, size)
        place = module, dtype, gradients, self._algorithms[conv, size]
        found = self._packs.get(place)
        if found is None or found[0] != key:
            # the alias keeps this address from being given to another weight
            found = self._packs[place] = (key, weight.detach(), self.engine.pack(conv, weight, dtype, gradients, size))
        return found[2]


def storage_dtype(x: Tensor) -> torch.dtype:
    """What activations are stored in: autocast's dtype, else the input's."""
    if _mixes(x):
        return torch.float16
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:  # which autocast leaves as it is
        return torch.get_autocast_dtype(device)
    return x.dtype


def _mixes(x: Tensor) -> bool:
    return _MIXED.get() is not None and x.dtype != torch.float64


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: Callable[[walk.Call, list[Tensor]], Made], call: walk.Call, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        inputs: Any = tensors[: call.region.inputs]
        made = run(call, list(inputs))
        ctx.call, ctx.recorded = made.call, made.recorded
        ctx.weights = [(module.weight, _version(module.weight)) for module, _ in call.modules]
        ctx.dtypes = [None if t is None else t.dtype for t in tensors]
        ctx.save_for_backward(made.lease, made.vectors, *made.saved)
        outputs = tuple(z.detach() for z in made.outputs)  # else views of rows, which autograd lets nobody edit in place
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(z for z, value in zip(outputs, call.region.outputs, strict=True) if value not in call.live))
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = _backward(ctx, gradients)
        if torch.is_grad_enabled():  # create_graph=True
            found = _Once.apply(torch.empty(0, requires_grad=True), *found)
        return None, None, *found


class _Once(torch.autograd.Function):
    """Hands gradients on; differentiating them raises. (torch's once_differentiable lets that pass, as a constant, where
    no upstream gradient requires one itself.)"""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        return tuple(None if g is None else g.detach() for g in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        raise RuntimeError("double backward through a fused region: fastbn computes first derivatives; use fuse(model, 'stock')")


def _backward(ctx: Any, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    call: walk.Call = ctx.call
    for (weight, version), conv in zip(ctx.weights, call.region.convs, strict=True):
        if _version(weight) != version:
            raise RuntimeError(
                f"{conv.name}.weight was modified in place between the forward and the backward; the gradient would belong to neither"
            )
    _, vectors, *saved = ctx.saved_tensors
    ctx.maybe_clear_saved_tensors()  # unless the graph is retained: from here on `saved` alone holds them, and the walk lets go of each
    given = [None if g is None else g.to(call.gradients).contiguous(memory_format=torch.channels_last) for g in gradients]
    recorded: Replayed | None = ctx.recorded
    replayed = recorded.backward(given, vectors, saved) if recorded else None
    found, affine = walk.backward(call, given, vectors, saved) if replayed is None else replayed
    needs, dtypes = ctx.needs_input_grad[2:], ctx.dtypes
    pairs = (affine.get(conv, (None, None)) for conv in call.region.convs)
    every = [*(found.get(value) for value in range(call.region.inputs)), *itertools.chain.from_iterable(pairs)]
    return tuple(None if g is None or not needed else g.to(dtype) for g, needed, dtype in zip(every, needs, dtypes, strict=True))
