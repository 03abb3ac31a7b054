"""The memory that a network's step occupies at any batch: its regions' footprints, and what PyTorch's own
operations save and make between them.

The operations outside the regions run on fake tensors, which have shapes and no contents, under autograd:
autograd keeps what it would keep. Weights, the data set and the optimizer's vectors are not a step's."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import weakref
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastbn.engine import recomputation
from fastbn.engine.fuse import Fused
from fastbn.engine.interface import Engine
from fastbn.engine.logits import logits_of
from fastbn.engine.program.build import read
from fastbn.engine.region import FusedRegion
from fastbn.engine.select import choose
from fastbn.graph.regions import Conv, Region, Shape
from fastbn.graph.trace.draws import preserved
from fastbn.graph.trace.values import CLOSED
from fastbn.planning.region_memory import Footprint, footprint

# the bytes of packed weights by engine and kind: the same for every network of a process
PACKED: weakref.WeakKeyDictionary[Engine, dict[Any, int]] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Occupied:
    """A step's bytes: at its peak; of what the forward leaves for the backward, all regions'; and the FLOPs
    that the backward repeats."""

    peak: int
    saved: int
    flops_again: int


class Counted(TorchDispatchMode):
    """A context in which `live` is the bytes of the storages that torch made and that still live; `peak` the
    most that it was."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        made = function(*arguments, **(keywords or {}))
        for t in tree_leaves(made):
            if isinstance(t, Tensor):
                self.note(t)
        return made

    def note(self, t: Tensor) -> None:
        """Count a tensor's storage for as long as it lives, once."""
        storage = t.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage.nbytes()
            self.add(storage.nbytes())
            weakref.finalize(storage, self._gone, storage._cdata).atexit = False

    def add(self, size: int) -> None:
        """Count bytes that have been allocated."""
        self.live += size
        self.reach(self.live)

    def reach(self, size: int) -> None:
        """Raise the peak to `size` bytes where it is lower."""
        self.peak = max(self.peak, size)

    def _gone(self, key: int) -> None:
        self.live -= self._seen.pop(key)


class NetworkMemory:
    """A model as an engine sees it, which tells what its steps occupy. It is read in the modes that it is
    in."""

    def __init__(self, model: nn.Module, engine: Engine, program: fx.GraphModule | None = None):
        self.engine = engine
        self._program = program if program is not None else read(model, {}, engine, {})[1]
        self._regions = [module for module in self._program.children() if isinstance(module, FusedRegion)]
        parameters = list(model.parameters())
        self._device = parameters[0].device if parameters else torch.device("cpu")
        self.trained = sum(p.numel() for p in parameters if p.requires_grad)
        self.stored_bytes = sum(t.nbytes for t in (*parameters, *model.buffers()))
        self._shapes: dict[Shape, list[tuple[Region, dict[int, Shape]]]] = {}
        self._stock: dict[Shape, int] = {}  # multiplications of the convolutions outside the regions

    @staticmethod
    def of(model: nn.Module, fused: Fused, dtype: torch.dtype) -> NetworkMemory:
        """Return a fused model's own, for activations of this dtype on the device where it is."""
        device = next(model.parameters()).device
        _, program = fused.program(device, dtype)
        engine, _ = choose(fused.choice, device, dtype, fused.exact)
        assert engine is not None
        return NetworkMemory(model, engine, program)

    def shapes(self, x: Shape) -> list[tuple[Region, dict[int, Shape]]]:
        """Return every region with the shapes of its values, for a batch of this shape."""
        self._walked(x)
        return self._shapes[x]

    def multiplications(self, x: Shape) -> tuple[int, int]:
        """Return the multiplications of every convolution's forward, for a batch of this shape: those in
        regions, and all."""
        self._walked(x)
        fused = sum(
            math.prod(conv.weight_shape[1:]) * math.prod(shapes[join.value])
            for region, shapes in self._shapes[x]
            for join in region.joins
            for conv in join.convs
            if not conv.copies
        )
        return fused, fused + self._stock[x]

    def _walked(self, x: Shape) -> None:
        if x not in self._shapes:
            with apart(self._program), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                walk = _Walk(self._program, self.engine, Counted(), (torch.float32, torch.float32), None)
                walk.run(torch.empty(x, device=self._device))
            self._shapes[x], self._stock[x] = walk.shapes, walk.products

    def packed_bytes(self, x: Shape, dtypes: tuple[torch.dtype, torch.dtype]) -> int:
        """Return the bytes of the frozen weights in the engine's own layouts, for images x."""
        total = 0
        shapes = {id(region): of_values for region, of_values in self.shapes(x)}
        for region in self._regions:
            value_shapes = shapes[id(region.region)]
            chosen = self.engine.choices(region.region.convs, value_shapes)
            for conv, (module, _), by in zip(region.region.convs, region.pairs, chosen, strict=True):
                size = value_shapes[conv.source][2:]
                weight = module.weight
                key = _kind(conv), dtypes, by, weight.dtype, weight.device, weight.stride()
                known = PACKED.setdefault(self.engine, {})
                if key not in known:
                    with FakeTensorMode(allow_non_fake_inputs=True) as fake, Counted() as counted:
                        shape = fake.from_tensor(weight)
                        counted.note(shape)
                        held = counted.live  # the weight itself is not counted, where it is used as it is
                        packed = self.engine.pack(conv, shape, *dtypes, size, by)
                        known[key] = counted.live - held
                        del packed
                total += known[key]
        return total

    def occupied(
        self, x: Shape, dtypes: tuple[torch.dtype, torch.dtype], policy: recomputation.Recompute | None = None
    ) -> Occupied:
        """Return what a step occupies on a batch of float32 images x, from their making to the gradients.
        dtypes: what activations and gradients are stored in. Raises Unfit for a shape that a region can't
        run."""
        before = [(p, p.grad) for p in self._program.parameters()]  # of what trains outside the regions
        try:
            with apart(self._program), FakeTensorMode(allow_non_fake_inputs=True), Counted() as counted:
                walk = _Walk(self._program, self.engine, counted, dtypes, policy)
                logits = walk.run(
                    torch.empty(x, device=self._device).contiguous(memory_format=torch.channels_last)
                )
                loss = F.cross_entropy(
                    logits_of(logits).float(), torch.zeros(x[0], dtype=torch.int64, device=self._device)
                )
                if loss.requires_grad:
                    loss.backward()
        finally:
            for p, gradient in before:
                p.grad = gradient
        return Occupied(counted.peak, walk.saved, walk.flops_again)


@contextlib.contextmanager
def apart(program: fx.GraphModule) -> Iterator[None]:
    """Inside, modules have copies of their buffers; afterwards buffers and random numbers are as they were:
    stock BatchNorms count batches on fake tensors too, and the model shall show no mark of it."""
    opened = [module for module in program.modules() if not isinstance(module, CLOSED) and module._buffers]
    held = [(module._buffers, dict(module._buffers)) for module in opened]
    try:
        for buffers, originals in held:
            buffers.update({name: None if t is None else t.clone() for name, t in originals.items()})
        with preserved():
            yield
    finally:
        for buffers, originals in held:
            buffers.update(originals)


def _kind(conv: Conv) -> Any:
    """Return what a packed weight's size depends on."""
    return dataclasses.astuple(dataclasses.replace(conv, name="", norm="", source=0, slot=0))


class _Walk(fx.Interpreter):
    """A run of a program on fake tensors, its regions replaced by what they occupy."""

    def __init__(
        self,
        program: fx.GraphModule,
        engine: Engine,
        counted: Counted,
        dtypes: tuple[torch.dtype, torch.dtype],
        policy: Any,
    ):
        super().__init__(program)
        self._engine, self._counted, self._dtypes, self._policy = engine, counted, dtypes, policy
        self.saved = self.flops_again = self.products = 0
        self.shapes: list[tuple[Region, dict[int, Shape]]] = []

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not isinstance(module, FusedRegion):
            made = super().call_module(target, args, kwargs)
            if isinstance(module, nn.modules.conv._ConvNd):
                positions = args[0] if module.transposed else made
                self.products += module.weight[0].numel() * positions.numel()
            return made
        region, size = module.region, self._dtypes[0].itemsize
        shapes = region.shapes(tuple(x.shape for x in args))
        self.shapes.append((region, shapes))
        again = () if self._policy is None else recomputation.spans(region, shapes, size, self._policy)
        wanted = tuple(x.requires_grad for x in args)
        occupied = footprint(
            region, module.pairs, self._engine, tuple(x.shape for x in args), wanted, self._dtypes, again
        )
        self.saved += occupied.saved
        for span in again:
            for i in span:
                for conv in region.joins[i].convs:
                    self.flops_again += (
                        2 * math.prod(conv.weight_shape[1:]) * math.prod(shapes[region.joins[i].value])
                    )
        trains = any(
            t is not None and t.requires_grad for _, norm in module.pairs for t in (norm.weight, norm.bias)
        )
        # in place of γ and β, whose gradients stay what they are
        anchor = torch.empty((), requires_grad=trains)
        cast = sum(x.numel() * size for x in args if x.dtype != self._dtypes[0])
        # what enters the first of them is kept, and what a BatchNorm reads that reads no convolution
        keeps = bool(again) or any(conv.copies and conv.source < region.inputs for conv in region.convs)
        if keeps:
            occupied = dataclasses.replace(
                occupied, saved=occupied.saved + cast, backward=occupied.backward + cast
            )
        outputs = [shapes[value] for value in region.outputs]
        return _Region.apply(
            _Absent(self._counted, occupied, cast, self._dtypes[1], outputs, keeps and not cast),
            *args,
            anchor,
        )


@dataclasses.dataclass(frozen=True)
class _Absent:
    """The stand-in for a region."""

    counted: Counted
    found: Footprint
    cast: int  # bytes of its inputs in its own dtype, where they come in another
    gradients: torch.dtype
    outputs: list[Shape]
    keeps: bool  # whether its inputs are among what it saves


class _Region(torch.autograd.Function):
    """A region that is not there, which counts what it would occupy."""

    @staticmethod
    def forward(ctx: Any, region: _Absent, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.region, ctx.tensors = region, [(t.shape, t.requires_grad, t.device) for t in tensors]
        ctx.set_materialize_grads(False)
        if region.keeps:
            ctx.save_for_backward(*tensors)
        region.counted.reach(region.counted.live + region.found.forward + region.cast)
        outputs = tuple(
            tensors[0].new_empty(shape).contiguous(memory_format=torch.channels_last)
            for shape in region.outputs
        )
        region.counted.add(region.found.saved)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        region, counted = ctx.region, ctx.region.counted
        # counted here and in the footprint
        both = sum(g.nbytes for g in gradients if g is not None and g.dtype == region.gradients)
        counted.reach(counted.live - region.found.saved - both + region.found.backward)
        counted.add(-region.found.saved)
        return None, *(
            torch.empty(shape, device=device) if wanted else None for shape, wanted, device in ctx.tensors
        )
