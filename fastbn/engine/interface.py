"""The interface of engines: the operations that a walk over a region is made of, what passes between them and
the walk, and what an engine says of itself.

Activations are logical (N, C, H, W) in channels-last memory; per-channel vectors are (C,) float32 (float64
when the activations are). `ds` is the gradient after the ReLU's mask, `y` a convolution's raw output, M =
N·H·W."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastbn.engine.algorithm import Algorithm
from fastbn.graph.activations import Function
from fastbn.graph.regions import Conv, Shape


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
        """Return μ, (C,) float32."""
        return self.vectors[0]

    @property
    def rstd(self) -> Tensor:
        """Return r = (σ² + ε)^-½, (C,) float32."""
        return self.vectors[1]

    @property
    def scale(self) -> Tensor:
        """Return γ·r, (C,) float32."""
        return self.vectors[2]

    @property
    def shift(self) -> Tensor:
        """Return β − μ·γ·r, (C,) float32."""
        return self.vectors[3]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """A raw output's mean and biased variance over its M rows, both (C,)."""

    mean: Tensor
    var: Tensor


class ProcessGroup(Protocol):
    """The processes whose batches BatchNorm takes as one. Each calls these for the same convolutions, in the
    same order, and waits in them for the others."""

    def rows(self, local_rows: int) -> int:
        """Return M over all of them, where this one's tensors have `local_rows` rows."""

    def statistics(self, local: Statistics) -> Statistics:
        """Return the statistics of everybody's rows, from those of this process's."""

    def sums(self, ds: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ ds and Σ ds·(y − μ) over everybody's rows, from those over this process's; (C,) each."""


@dataclasses.dataclass(frozen=True)
class NormTarget:
    """A BatchNorm that reads a raw output: its module, and where its vectors go."""

    module: nn.BatchNorm2d
    conv_bias: Tensor | None  # of the convolution before: the raw output is without it
    norm: NormVectors  # its vectors are written
    group: ProcessGroup | None = None  # whose statistics it takes, where not this process's alone


@dataclasses.dataclass(frozen=True)
class LazyActivation:
    """An activation z = function(Σ scale·y + shift [+ residual]) that is not yet formed: what reads it first
    forms it as it loads."""

    ys: tuple[Tensor, ...]
    norms: tuple[NormVectors, ...]
    residual: Tensor | None
    function: Function


@dataclasses.dataclass(frozen=True)
class Formed:
    """The results of forming an activation, each only if it was asked for."""

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
    """A way by which gradient comes back to a value: convᵀ(dy) with dy = c1·ds + c2·y + c0."""

    conv: Conv
    packed: Any
    ds: Tensor
    y: Tensor
    coefficients: Pending


@dataclasses.dataclass(frozen=True)
class Mask:
    """The way in which a value was made, as far as its gradient depends on it. `saved` is the forward's mask;
    without one the mask is recomputed from y."""

    function: Function
    saved: Any | None
    ys: tuple[Tensor, ...]
    norms: tuple[NormVectors, ...]
    affine: tuple[Tensor, ...]  # by y: (2, C), where its dγ and dβ go: this process's part of them
    group: ProcessGroup | None = None  # as in the forward's target


class Operations(Protocol):
    """The operations on a region's data that a walk is made of."""

    def convolve(
        self,
        conv: Conv,
        packed: Any,
        source: Tensor | LazyActivation,
        keep_z: bool,
        keep_mask: bool,
        target: NormTarget | None,
    ) -> tuple[Tensor, Formed | None]:
        """Return y = conv(source), and what forming the source left behind (None if it was formed already).
        The target's vectors become μ, r, γ·r and β − μ·γ·r: of y's own statistics, by which the running ones
        move, or of the running ones where it is frozen; at once, or when the engine first reads them. With no
        target y is all: what reads it has its vectors already."""

    def ready(self, norm: NormVectors) -> None:
        """Write the vectors of a norm that no operation will read."""

    def form(self, activation: LazyActivation, keep_mask: bool) -> Formed:
        """Return z of an activation that no convolution reads first."""

    def gradient(
        self, paths: list[BackpropPath], added: list[Tensor], mask: Mask | None, shape: Shape
    ) -> tuple[Tensor, list[Pending]]:
        """Return the gradient of a value of this shape: Σ convᵀ(dy) + Σ added, masked: ds. For each of the
        mask's ys its coefficients, to be handed to a path or to settle(); its dγ and dβ are written then at
        the latest. With no mask it is the plain sum (a region's input)."""

    def settle(self, coefficients: Pending) -> Coefficients:
        """Make coefficients that no path takes."""


class Memory(Protocol):
    """A source of the tensors of a workspace; they have shapes and lifetimes, and no contents."""

    def activation(self, shape: Shape) -> Any:
        """Return a tensor of the forward's dtype."""

    def gradient(self, shape: Shape) -> Any:
        """Return a tensor of the backward's dtype."""

    def mask(self, shape: Shape, pixel: int) -> Any:
        """Return a mask of so many bytes a pixel of a value of this shape."""

    def operate(self, *operands: Any) -> None:
        """Begin the next operation, which reads these: tensors, lazy activations, or None."""


class Execution(enum.Enum):
    """The way in which a walk like one that was seen before may run faster."""

    EAGER = "walked each time"
    CUDA_GRAPH = "replayed as a CUDA graph"
    PROGRAM = "played as a list of the native library's calls"


class Engine(Operations, Protocol):
    """The operations, and what runs them: which convolutions, by which algorithms, in how much
    memory."""

    name: str
    groups: bool  # whether it takes statistics of a group
    tasks: bool  # whether each sample may be normalised by vectors of a task of its own, in evaluation
    halves: bool  # whether it takes a BatchNorm without a convolution, and a convolution without a BatchNorm
    functions: frozenset[str]  # the names of the activation functions that it has
    execution: Execution

    def supports(self, conv: Conv) -> str | None:
        """Return None, or why this convolution must run stock."""

    def takes(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Return whether it runs activations of this dtype there."""

    def algorithm(self, conv: Conv, size: tuple[int, int] | None = None) -> Algorithm:
        """Return the algorithm that runs this convolution, of images of this (height, width) if it is
        known."""

    def choices(self, convs: Sequence[Conv], shapes: dict[int, Shape]) -> list[Algorithm]:
        """Return what carries a region's convolutions out, for values of these shapes: as algorithm() has it,
        or what makes do with less memory."""

    def workspace(self, memory: Memory) -> Operations:
        """Return its operations as allocations alone: what each returns, and what it takes beside that while
        it runs."""

    def pack(
        self, conv: Conv, weight: Tensor, dtype: torch.dtype, gradients: torch.dtype | None = None,
        size: tuple[int, int] | None = None,
        by: Algorithm | None = None,
    ) -> Any:  # fmt: skip
        """Return the frozen weight (C, C_in/groups, KH, KW) in the form that this engine multiplies
        activations of this dtype by, and gradients of that one (the same where it is None), by this algorithm
        of its own, or by the one for images of this size. Made once."""
