"""The work that a BatchNorm-only training step of a network is made of, counted: by PyTorch's own operations
alone, and with the regions run by an engine. What lies between the regions is the same in both.

Counted   bytes and launches of the regions by the traffic model (planning/traffic.py); the convolutions'
          FLOPs by kind; of the operations between the regions the bytes that each reads and writes.
Left out  what a library moves beside that; what caches save."""

from __future__ import annotations

import collections
import math
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastbn.engine import batchnorm
from fastbn.engine.algorithm import Algorithm
from fastbn.engine.interface import Engine
from fastbn.engine.program.compare import unheard
from fastbn.engine.region import FusedRegion
from fastbn.graph.regions import Conv, Shape
from fastbn.planning import traffic
from fastbn.planning.counting import multiplied
from fastbn.planning.step_memory import apart

# amounts by kind: "bytes", or "far bytes" of a pass that moves more than caches hold, "launches", "regions",
# and FLOPs by `kind`
Work = collections.Counter[str]
FAR = 32 << 20
WINOGRAD = (Algorithm.WINOGRAD_2, Algorithm.WINOGRAD_4)
# chosen where it is faster than the plain sum by weights as they are, and counted as that: what transforming
# weights at every step costs is not among the kinds
NOT_PACKED = (Algorithm.RAW, Algorithm.WINOGRAD_2_RAW, Algorithm.WINOGRAD_4_RAW)
BACKWARD = 2  # bytes of a backward for each of the forward's, between the regions


def kind(conv: Conv, algorithm: Algorithm = Algorithm.TORCH) -> str:
    """Return the kind of a convolution's FLOPs."""
    if conv.groups > 1:
        return "depthwise" if conv.groups == conv.in_channels else "grouped"
    if algorithm in (*WINOGRAD, *NOT_PACKED):
        return "Winograd" if algorithm in WINOGRAD else "not packed"
    return "1×1" if conv.kernel == (1, 1) else "k×k"


def step_work(program: fx.GraphModule, engine: Engine, inputs: list[Any]) -> tuple[Work, Work, Work]:
    """Return the work of a training step, stock's and fused, for inputs like these, and what of it lies
    between the regions, the same in both. Nothing is computed, and
    the model shows no mark of it.

    Raises what the model raises for an input that it can't read, and Unfit for one that a region can't."""
    with (
        unheard(),
        apart(program),
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        _Passes() as between,
    ):
        walk = _Walk(program, engine, between)
        walk.run(*(fake.from_tensor(x) if isinstance(x, Tensor) else x for x in inputs))
    return walk.stock + between.work, walk.fused + between.work, between.work


class _Passes(TorchDispatchMode):
    """A context that counts what PyTorch's operations move, a backward's among it where they have one."""

    def __init__(self) -> None:
        super().__init__()
        self.work: Work = collections.Counter()
        self.paused = False

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        made = function(*arguments, **(keywords or {}))
        outputs, read = _tensors(made), _tensors(arguments)
        if self.paused or function.is_view or not outputs or not read:
            return made
        passes = 1 + BACKWARD * any(t.requires_grad for t in read)
        moved = sum(t.nbytes for t in (*read, *outputs))
        self.work[_distance(moved)] += passes * moved
        self.work["launches"] += passes
        if function is torch.ops.aten.convolution.default:
            weight, groups = arguments[1], arguments[-1]
            named = "k×k" if weight[0, 0].numel() > 1 else "1×1"
            if groups > 1:
                named = "depthwise" if weight.shape[1] == 1 else "grouped"
            positions = arguments[0] if arguments[6] else made
            self.work[named] += passes * 2 * weight[0].numel() * positions.numel()
        return made


def _tensors(values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


class _Walk(fx.Interpreter):
    """A run of a program on fake tensors, its regions replaced by their work."""

    def __init__(self, program: fx.GraphModule, engine: Engine, between: _Passes):
        super().__init__(program)
        self.extra_traceback = False
        self._engine, self._between = engine, between
        self.stock: Work = collections.Counter()
        self.fused: Work = collections.Counter()

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not isinstance(module, FusedRegion):
            return super().call_module(target, args, kwargs)
        region, norms = module.region, [norm for _, norm in module.pairs]
        case = traffic.TrafficCase(
            region,
            tuple(tuple(x.shape) for x in args),
            args[0].element_size(),
            args[0].element_size(),
            tuple(x.requires_grad for x in args),
            tuple(any(t is not None and t.requires_grad for t in (n.weight, n.bias)) for n in norms),
            tuple(batchnorm.uses_batch(norm) for norm in norms),
        )
        chosen = self._engine.choices(region.convs, case.shapes)
        self.stock += _work(case, traffic.stock(case), dict.fromkeys(region.convs, Algorithm.TORCH))
        self.fused += _work(case, traffic.fused(case), dict(zip(region.convs, chosen, strict=True)))
        self.fused["regions"] += 1
        live, self._between.paused = case.live(), True
        made = tuple(_empty(case.shapes[z], args[0], z in live) for z in region.outputs)
        self._between.paused = False
        return made


def _distance(moved: int) -> str:
    return "far bytes" if moved > FAR else "bytes"


def _empty(shape: Shape, like: Tensor, live: bool) -> Tensor:
    made = like.new_empty(shape).contiguous(memory_format=torch.channels_last)
    return _Made.apply(made, made.new_empty(1, requires_grad=True)) if live else made


class _Made(torch.autograd.Function):
    """A result that a backward reaches, and that operations may write to, as they may to a region's."""

    @staticmethod
    def forward(ctx: Any, made: Tensor, anchor: Tensor) -> Tensor:
        return made.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        return None, None


def _work(case: traffic.TrafficCase, plan: traffic.TrafficPlan, algorithms: dict[Conv, Algorithm]) -> Work:
    work: Work = collections.Counter()
    for each in (*plan.forward, *plan.backward):
        work[_distance(each.cost.moved)] += each.cost.moved
        work["launches"] += each.cost.launches
    live = case.live()
    for join in case.region.joins:
        for conv in join.convs:
            if not conv.copies:
                by = algorithms[conv]
                share = 1.0 if by in NOT_PACKED else by.products
                products = math.ceil(share * multiplied(conv, case.shapes[join.value], 1)[1])
                work[kind(conv, by)] += products * (1 + (conv.source in live))
    return work
