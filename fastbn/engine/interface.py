"""The few operations that an engine carries out, and what passes between them and the walk over a region.

Activations are logical (N, C, H, W) in channels-last memory; per-channel vectors are (C,) float32 (float64
when the activations are). `ds` is the gradient after the ReLU's mask, `y` a convolution's raw output, M =
N·H·W."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from fastbn.graph.activations import Function
from fastbn.graph.regions import Conv, Shape

if TYPE_CHECKING:
    from fastbn.engine.executor import Replays


@dataclasses.dataclass(eq=False)
class NormVectors:
    """A BatchNorm at work: n = scale·y + shift with scale = γ·r, shift = β − μ·scale, r = (σ² + ε)^-½.
    Views of (4, C), or of (4, T, C) where samples have tasks."""

    vectors: Tensor  # (4, C): mean, rstd, scale, shift
    batch: bool  # whether μ and σ² are the batch's own (their gradient flows) or frozen
    # while the vectors are not yet written: what the engine will write them from, when it reads them first
    pending: Any = None
    # (N,) int32, in evaluation: which of T tasks each sample is of; the vectors then are (4, T, C)
    tasks: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        return self.vectors[0]

    @property
    def rstd(self) -> Tensor:
        return self.vectors[1]

    @property
    def scale(self) -> Tensor:
        return self.vectors[2]

    @property
    def shift(self) -> Tensor:
        return self.vectors[3]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """A raw output's mean and biased variance over its M rows, both (C,)."""

    mean: Tensor
    var: Tensor


class ProcessGroup(Protocol):
    """Processes whose batches BatchNorm takes as one. Each calls these for the same convolutions, in the same
    order, and waits in them for the others."""

    def rows(self, own: int) -> int:
        """M over all of them, where this one's tensors have `own` rows."""

    def statistics(self, own: Statistics) -> Statistics:
        """Of everybody's rows, from those of one's own."""

    def sums(self, ds: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
        """Σ ds and Σ ds·(y − μ) over everybody's rows, from those over one's own; (C,) each."""


@dataclasses.dataclass(frozen=True)
class NormTarget:
    """A BatchNorm that reads a raw output: its module, and where its vectors go."""

    module: nn.BatchNorm2d
    conv_bias: Tensor | None  # of the convolution before: the raw output is without it
    norm: NormVectors  # its vectors are written
    group: ProcessGroup | None = None  # whose statistics it takes, where not this process's alone


@dataclasses.dataclass(frozen=True)
class LazyActivation:
    """z = function(Σ scale·y + shift [+ residual]), not yet formed: whoever reads it first forms it as it
    loads."""

    ys: tuple[Tensor, ...]
    norms: tuple[NormVectors, ...]
    residual: Tensor | None
    function: Function


@dataclasses.dataclass(frozen=True)
class Formed:
    """What forming an activation left behind; each only if it was asked for."""

    z: Tensor | None
    # of a function after an addition, in the engine's own form: a bit an element where its derivative has two
    # values
    mask: Any | None


# what is launched -> what launches it again, in the same memory
Record = Callable[[Callable[[], None]], Callable[[], None]]
# c1, c2, c0, (C,) each; the last two None where statistics are frozen
Coefficients = tuple[Tensor, Tensor | None, Tensor | None]
Pending = Any  # coefficients, or what an engine will make them from


@dataclasses.dataclass(frozen=True)
class BackpropPath:
    """One way by which gradient comes back to a value: convᵀ(dy) with dy = c1·ds + c2·y + c0."""

    conv: Conv
    packed: Any
    ds: Tensor
    y: Tensor
    coefficients: Pending


@dataclasses.dataclass(frozen=True)
class Mask:
    """How a value was made, as far as its gradient needs to know. `saved` is the forward's mask, else it
    is recomputed from y."""

    function: Function
    saved: Any | None
    ys: tuple[Tensor, ...]
    norms: tuple[NormVectors, ...]
    affine: tuple[Tensor, ...]  # by y: (2, C), where its dγ and dβ go: this process's part of them
    group: ProcessGroup | None = None  # as in the forward's target


class Engine(Protocol):
    """What an engine is: these operations on the graph's data, and nothing else."""

    name: str
    groups: bool  # whether it takes statistics of a group
    tasks: bool  # whether each sample may be normalised by vectors of a task of its own, in evaluation
    halves: bool  # whether it takes a BatchNorm without a convolution, and a convolution without a BatchNorm
    functions: frozenset[str]  # the names of the activation functions that it has

    def supports(self, conv: Conv) -> str | None:
        """None, or why this convolution must run stock."""

    def takes(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it carries out activations of this dtype there."""

    def algorithm(self, conv: Conv, size: tuple[int, int] | None = None) -> str:
        """The name of what carries this convolution out, of images of this (height, width) if it is known."""

    def choices(self, convs: Sequence[Conv], shapes: dict[int, Shape]) -> list[str]:
        """The names of what carries a region's convolutions out, for values of these shapes: as algorithm()
        has it, or what makes do with less memory."""

    def mask_bytes(self, channels: int) -> int:
        """Of one pixel's mask of a bit an element."""

    def forms_first(self, conv: Conv, source: Shape, keeps: bool) -> bool:
        """Whether z is formed by a pass before this convolution reads it, rather than as it loads. keeps:
        z or its mask is asked for."""

    def aside(self, conv: Conv, size: tuple[int, int]) -> bool:
        """Whether its input gradient, of images of this size, is made, and dy for it, before the sum that
        it goes into."""

    def replays(self) -> Replays:
        """What keeps a region's walks, so as to carry their like out faster."""

    def pack(
        self, conv: Conv, weight: Tensor, dtype: torch.dtype, gradients: torch.dtype | None = None,
        size: tuple[int, int] | None = None,
        by: str | None = None,
    ) -> Any:  # fmt: skip
        """The frozen weight (C, C_in/groups, KH, KW) in the form that this engine multiplies activations of
        this dtype by, and gradients of that one (the same where it is None), by this algorithm of its own, or
        by the one for images of this size. Made once."""

    def convolve(
        self,
        conv: Conv,
        packed: Any,
        source: Tensor | LazyActivation,
        keep_z: bool,
        keep_mask: bool,
        target: NormTarget | None,
    ) -> tuple[Tensor, Formed | None]:
        """y = conv(source), and what forming the source left behind (None if it was formed already). The
        target's vectors become μ, r, γ·r and β − μ·γ·r: of y's own statistics, by which the running ones
        move, or of the running ones where it is frozen; at once, or when the engine first reads them. With no
        target y is all: what reads it has its vectors already."""

    def ready(self, norm: NormVectors) -> None:
        """Sees to it that the vectors are written, for a norm that no operation will read."""

    def form(self, activation: LazyActivation, keep_mask: bool) -> Formed:
        """z of an activation that no convolution reads first."""

    def gradient(
        self, paths: list[BackpropPath], added: list[Tensor], mask: Mask | None, shape: Shape
    ) -> tuple[Tensor, list[Pending]]:
        """The gradient of a value of this shape: Σ convᵀ(dy) + Σ added, masked: ds. For each of the mask's ys
        its coefficients, to be handed to a path or to settle(); its dγ and dβ are written then at the latest.
        With no mask it is the plain sum (a region's input)."""

    def settle(self, coefficients: Pending) -> Coefficients:
        """Coefficients that no path takes, made."""
