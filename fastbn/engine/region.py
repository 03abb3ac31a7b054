"""A region as a module: one autograd function around the walk, and the region's own nodes for the calls
that it can't take."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastbn.engine import batchnorm, recomputation, walk
from fastbn.engine.context import current
from fastbn.engine.executor import Eager, Executor
from fastbn.engine.function import RegionFunction
from fastbn.engine.interface import Engine, Execution, NormTarget, NormVectors, ProcessGroup
from fastbn.engine.module_state import ModuleState
from fastbn.engine.native.program import Programs
from fastbn.engine.triton.cuda_graphs import CudaGraphs
from fastbn.engine.weight_cache import Packing, WeightCache
from fastbn.errors import UsageError
from fastbn.graph.regions import Region, Shape, Unfit


def refuse_stock(why: str, norms: Iterable[nn.Module]) -> None:
    """Raise UsageError where BatchNorms that should take a group's statistics would run stock."""
    if current().group is not None and any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in norms
    ):
        raise UsageError(
            f"--sync-bn: a BatchNorm would run stock, by this rank's statistics alone: {why}; leave "
            "--sync-bn out"
        )


def executor_of(engine: Any) -> Executor:
    """Return what carries a region's walks out by this engine."""
    if engine.execution is Execution.PROGRAM:
        return Programs(engine)
    return CudaGraphs() if engine.execution is Execution.CUDA_GRAPH else Eager()


class FusedRegion(nn.Module):
    """Runs a region by an engine. `stock` is the same region as ordinary nodes: it takes the calls that do
    not fit."""

    def __init__(
        self,
        region: Region,
        engine: Engine,
        modules: list[tuple[nn.Conv2d, nn.BatchNorm2d]],
        stock: fx.GraphModule,
        packs: WeightCache,
    ):
        super().__init__()
        self.region, self.engine = region, engine
        self.pairs = modules  # in a list: they are the model's own submodules, not this one's
        self._stock = [stock]
        self._held = ModuleState(modules)
        self._packing = Packing(region, engine, modules, packs)
        self._own = [conv.weight_shape for conv in region.convs], [conv.channels for conv in region.convs]
        # and whether a BatchNorm gets one value a channel
        self._shapes: dict[tuple[Shape, ...], tuple[dict[int, Shape], bool]] = {}
        self._lives: dict[tuple[tuple[bool, ...], tuple[bool, ...]], frozenset[int]] = {}
        self._segments: dict[Any, tuple[range, ...]] = {}
        self._warned: set[str] = set()
        self.executor = executor_of(engine)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self._held.look()
        try:
            shapes = self._check(inputs)
        except Unfit as unfit:
            refuse_stock(str(unfit), (norm for _, norm in self.pairs))
            if str(unfit) not in self._warned:
                self._warned.add(str(unfit))
                warnings.warn(
                    f"fastbn runs {self.region.convs[0].name} to {self.region.convs[-1].norm} stock: {unfit}",
                    stacklevel=2,
                )
            return self._stock[0](*inputs)
        return self._walked(inputs, shapes)

    def served(self, inputs: tuple[Tensor, ...], tasks: Tensor, vectors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs in evaluation, each sample's normalised by its own task.

        tasks: (N,) int32. vectors: (4, T, channels), every task's as `eval_vectors` makes them. No BatchNorm
        takes the batch's statistics. Raises Unfit where the engine has no such operation."""
        if not self.engine.tasks:
            raise Unfit(f"the {self.engine.name} engine has no vectors by task")
        self._held.look()
        shapes = self._check(inputs)
        if any(len(x) != len(tasks) for x in inputs):
            raise Unfit("a region's input has not one image a sample")
        return self._walked(inputs, shapes, [tasks, vectors])

    @torch.no_grad()
    def eval_vectors(self) -> Tensor:
        """Return μ, r, scale and shift of every BatchNorm by its running statistics, (4, channels)."""
        like = next(t for conv, norm in self.pairs for t in (norm.running_mean, conv.weight) if t is not None)
        wide = torch.promote_types(like.dtype, torch.float32)
        vectors = torch.empty((4, self.region.channels), dtype=wide, device=like.device)
        for conv, (module, norm) in zip(self.region.convs, self.pairs, strict=True):
            norm_vectors = NormVectors(vectors[:, conv.span], False)
            batchnorm.normalise(None, NormTarget(norm, module.bias, norm_vectors), 1)
        return vectors

    def _walked(
        self, inputs: tuple[Tensor, ...], shapes: dict[int, Shape], tasks: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        context = current()
        device, dtype = inputs[0].device.type, storage_dtype(inputs[0])
        is_mixed = _mixes(inputs[0])
        gradients = context.gradients or dtype if is_mixed else dtype
        # Triton launches on the current device
        with torch.autocast(device, enabled=False), torch.cuda.device_of(inputs[0]):
            cast = [x.to(dtype).contiguous(memory_format=torch.channels_last) for x in inputs]
            frozen = self._held.frozen()
            packed = self._packing(frozen, dtype, gradients, shapes)
            call = walk.Call(
                self.region,
                self.engine,
                self.pairs,
                packed,
                shapes,
                frozenset(),
                gradients,
                group=context.group,
                held=self._held,
                by_task=bool(tasks),
            )
            if torch.is_grad_enabled() and not tasks:
                call.live = self._live(cast)
                if context.recompute is not None:
                    call.again = self._spans(shapes, dtype.itemsize, context.recompute)
            if call.live.isdisjoint(self.region.outputs):
                with torch.no_grad():
                    outputs = tuple(self.executor.forward(call, [*cast, *tasks]).outputs)
            else:
                outputs = RegionFunction.apply(self.executor.forward, call, frozen, *cast, *self._held.affine)
            if is_mixed:
                outputs = tuple(z.float() for z in outputs)
            return outputs

    def _spans(
        self, shapes: dict[int, Shape], itemsize: int, policy: recomputation.Recompute
    ) -> tuple[range, ...]:
        key = tuple(shapes[value] for value in range(self.region.inputs)), itemsize, policy
        if key not in self._segments:
            self._segments[key] = recomputation.spans(self.region, shapes, itemsize, policy)
        return self._segments[key]

    def _check(self, inputs: tuple[Tensor, ...]) -> dict[int, Shape]:
        """Return every value's shape; raise Unfit if this call is not one for the walk."""
        for x in inputs:
            if not isinstance(x, Tensor):
                raise Unfit(f"an input is {x!r}, not a tensor")
            if x.dim() != 4 or not x.is_floating_point():
                raise Unfit(
                    f"an input is a {x.dtype} tensor of shape {tuple(x.shape)}, not (N, C, H, W) of floats"
                )
            if x.device != inputs[0].device or not self.engine.takes(x.device, storage_dtype(inputs[0])):
                raise Unfit(
                    f"the {self.engine.name} engine does not take {storage_dtype(inputs[0])} on {x.device}"
                )
        self._check_modules()
        given: Any = tuple([tuple(x.shape) for x in inputs])
        if given not in self._shapes:
            found = self.region.shapes(given)
            self._shapes[given] = (
                found,
                any(n * h * w == 1 for join in self.region.joins for n, _, h, w in [found[join.value]]),
            )
        (shapes, single), group = self._shapes[given], current().group
        if group is not None and not self.engine.groups:
            raise UsageError(
                f"--sync-bn: the {self.engine.name} engine has none; use --engine reference or native, or "
                "leave --sync-bn out"
            )
        if single or group is not None:
            self._refuse_single(shapes, group)
        return shapes

    def _check_modules(self) -> None:
        """Raise Unfit where a module's shape is not what was read."""
        sizes = self._held.sizes()
        if sizes != self._own:
            own = zip(self.region.convs, *sizes, *self._own, strict=True)
            conv = next(conv for conv, weight, size, *expected in own if [weight, size] != expected)
            raise Unfit(f"{conv.name} or {conv.norm} has another shape than it says")

    def _refuse_single(self, shapes: dict[int, Shape], group: ProcessGroup | None) -> None:
        """Raise Unfit where a BatchNorm would take the statistics of one value a channel, as stock
        refuses to."""
        pairs = iter(self.pairs)
        for join in self.region.joins:
            n, _, h, w = shapes[join.value]
            if (
                any([batchnorm.uses_batch(next(pairs)[1]) for _ in join.convs])
                and (group.rows(n * h * w) if group else n * h * w) == 1
            ):
                raise Unfit(f"{join.convs[0].norm} has one value per channel")

    def _live(self, inputs: list[Tensor]) -> frozenset[int]:
        """Return the values that a gradient passes."""
        wanted = tuple([x.requires_grad for x in inputs])
        asking = tuple([t is not None and t.requires_grad for t in self._held.affine])
        if (wanted, asking) not in self._lives:
            trains = [weight or bias for weight, bias in zip(asking[::2], asking[1::2], strict=True)]
            self._lives[wanted, asking] = walk.live_values(self.region, [*wanted], trains)
        return self._lives[wanted, asking]


def storage_dtype(x: Tensor) -> torch.dtype:
    """Return what activations are stored in: autocast's dtype, else the input's."""
    if _mixes(x):
        return torch.float16
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:  # which autocast leaves as it is
        return torch.get_autocast_dtype(device)
    return x.dtype


def _mixes(x: Tensor) -> bool:
    return current().gradients is not None and x.dtype != torch.float64
