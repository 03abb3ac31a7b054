"""How often each ReLU fires over a data set, and what excites it most, is read off the fused engine's own
pass, at the activations that it forms on its way. Frozen copies are made of networks that train their
convolutions, so these run fused too."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastbn.data.augment import batch
from fastbn.data.images import Images
from fastbn.engine.fuse import Fused, fuse
from fastbn.engine.interface import Engine, Execution, Formed, LazyActivation, NormTarget, NormVectors
from fastbn.engine.program.build import read
from fastbn.engine.select import choose
from fastbn.errors import UsageError
from fastbn.graph.activations import RELU
from fastbn.graph.regions import Conv
from fastbn.trainable import freeze

BATCH = 256
Look = Callable[[str, Tensor], None]  # (the BatchNorm before the ReLU, its activation (N, C, H, W))


@dataclasses.dataclass(frozen=True)
class Firing:
    """The firing of one ReLU: how often each channel was above 0, over all images and places."""

    name: str  # of the BatchNorm before it; of the branch's where it follows an addition
    fired: Tensor  # (C,) int64
    seen: int  # images · H · W

    @property
    def dead(self) -> float:
        """Return the share of channels that never fired."""
        return float((self.fired == 0).double().mean())

    @property
    def always(self) -> float:
        """Return the share of channels that fired for every image at every place."""
        return float((self.fired == self.seen).double().mean())


@dataclasses.dataclass(frozen=True)
class Exciting:
    """The images that excite each channel of a layer most, by the largest activation anywhere in the
    image."""

    indices: Tensor  # (C, count) int64, into the data set, the most exciting first
    values: Tensor  # (C, count)


class _Watching:
    """An engine that shows each ReLU's activation as it is formed, and is the engine itself in everything
    else."""

    execution = Execution.EAGER  # a replay would show nothing

    def __init__(self, engine: Engine, look: Look):
        self._engine, self._look = engine, look
        self._names: dict[NormVectors, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def convolve(
        self,
        conv: Conv,
        packed: Any,
        source: Tensor | LazyActivation,
        keep_z: bool,
        keep_mask: bool,
        target: NormTarget | None,
    ) -> tuple[Tensor, Formed | None]:
        assert target is not None  # which only a backward leaves out
        self._names[target.norm] = conv.norm
        y, formed = self._engine.convolve(
            conv, packed, source, keep_z or isinstance(source, LazyActivation), keep_mask, target
        )
        if isinstance(source, LazyActivation):
            assert formed is not None
            self._show(source, formed)
            formed = formed if keep_z else Formed(None, formed.mask)
        return y, formed

    def form(self, activation: LazyActivation, keep_mask: bool) -> Formed:
        formed = self._engine.form(activation, keep_mask)
        self._show(activation, formed)
        return formed

    def _show(self, activation: LazyActivation, formed: Formed) -> None:
        names = [self._names.pop(norm) for norm in activation.norms]
        if activation.function == RELU:
            assert formed.z is not None
            self._look(names[0], formed.z)


def watch(model: nn.Module, images: Images, look: Look, engine: str = "auto") -> None:
    """Make one pass over the images in eval mode, on the model's device; `look` is shown each fused ReLU's
    activation, batch by batch.

    Raises UsageError for a network in which nothing can run fused, TypeError for one that torch.fx can't
    trace."""
    frozen = freeze(fuse(copy.deepcopy(model), "stock"), "none").eval()
    like = next(frozen.parameters())
    chosen, _ = choose(engine, like.device, like.dtype)
    if chosen is None:
        raise UsageError(
            "firing is read off the fused engine's pass, and engine 'stock' has none; ask for 'auto' or "
            "'reference'"
        )
    watching = _Watching(chosen, look)
    graph, program = read(frozen, Fused(frozen, engine).defaults(), cast(Engine, watching), {})
    if not any(join.function == RELU for region in graph.regions for join in region.joins):
        raise UsageError(
            f"{type(model).__name__} has no ReLU behind a convolution and its BatchNorm: there is nothing "
            "to watch"
        )
    images = images.to(like.device)
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            indices = torch.arange(start, min(start + BATCH, len(images)), device=like.device)
            program(batch(images, indices, None).to(like.dtype))


def firing(model: nn.Module, images: Images, engine: str = "auto") -> list[Firing]:
    """Return the firing of every ReLU that runs fused, in the order in which they run. Raises as `watch`."""
    fired: dict[str, Tensor] = {}
    seen: dict[str, int] = {}

    def look(name: str, z: Tensor) -> None:
        fired[name] = fired.get(name, 0) + (z > 0).sum((0, 2, 3))
        seen[name] = seen.get(name, 0) + z[:, 0].numel()

    watch(model, images, look, engine)
    return [Firing(name, count.cpu(), seen[name]) for name, count in fired.items()]


def exciting(model: nn.Module, images: Images, layer: str, count: int = 8, engine: str = "auto") -> Exciting:
    """Return the `count` images that excite each channel of the ReLU behind this BatchNorm most. Raises
    UsageError for another layer."""
    peaks: list[Tensor] = []
    names: dict[str, None] = {}

    def look(name: str, z: Tensor) -> None:
        names[name] = None
        if name == layer:
            peaks.append(z.amax((2, 3)))  # (N, C)

    watch(model, images, look, engine)
    if not peaks:
        raise UsageError(f"no fused ReLU follows {layer!r}; choose one of {', '.join(names)}")
    values, indices = torch.cat(peaks).topk(min(count, len(images)), dim=0)
    return Exciting(indices.T.cpu(), values.T.cpu())
