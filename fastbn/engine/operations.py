"""The few operations that an engine carries out, and what passes between them and the walk over a region.

Activations are logical (N, C, H, W) in channels-last memory; per-channel vectors are (C,) float32 (float64 when the
activations are). `ds` is the gradient after the ReLU's mask, `y` a convolution's raw output, M = N·H·W.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastbn.engine.graph import Conv, Shape


@dataclasses.dataclass(frozen=True)
class Norm:
    """A BatchNorm ready for use: n = scale·y + shift with scale = γ·r, shift = β − μ·scale, r = (σ² + ε)^-½. Views of (4, C)."""

    vectors: Tensor  # (4, C): mean, rstd, scale, shift
    batch: bool  # whether μ and σ² are the batch's own (their gradient flows) or frozen

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
class Activation:
    """z = [relu](Σ scale·y + shift [+ residual]), not yet formed: whoever reads it first forms it as it loads."""

    ys: tuple[Tensor, ...]
    norms: tuple[Norm, ...]
    residual: Tensor | None
    relu: bool


@dataclasses.dataclass(frozen=True)
class Formed:
    """What forming an activation left behind; each only if it was asked for."""

    z: Tensor | None
    mask: Any | None  # of a ReLU after an addition, in the engine's own form


@dataclasses.dataclass(frozen=True)
class Statistics:
    """A raw output's mean and biased variance over its M rows, both (C,)."""

    mean: Tensor
    var: Tensor


@dataclasses.dataclass(frozen=True)
class Path:
    """One way by which gradient comes back to a value: convᵀ(dy) with dy = c1·ds + c2·y + c0."""

    conv: Conv
    packed: Any
    ds: Tensor
    y: Tensor
    coefficients: tuple[Tensor, Tensor | None, Tensor | None]  # c1, c2, c0; the last two None where statistics are frozen


@dataclasses.dataclass(frozen=True)
class Mask:
    """How a value was made, as far as its gradient needs to know. `saved` is the forward's mask, else it is recomputed from y."""

    relu: bool
    saved: Any | None
    ys: tuple[Tensor, ...]
    norms: tuple[Norm, ...]


class Engine(Protocol):
    """What an engine is: these operations on the graph's data, and nothing else."""

    name: str

    def supports(self, conv: Conv) -> str | None:
        """None, or why this convolution must run stock."""

    def takes(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it carries out activations of this dtype there."""

    def algorithm(self, conv: Conv) -> str:
        """The name of what carries this convolution out."""

    def pack(self, conv: Conv, weight: Tensor, dtype: torch.dtype) -> Any:
        """The frozen weight (C, C_in/groups, KH, KW) in the form that this engine multiplies by. Made once."""

    def convolve(
        self, conv: Conv, packed: Any, source: Tensor | Activation, keep_z: bool, keep_mask: bool, statistics: bool
    ) -> tuple[Tensor, Statistics | None, Formed | None]:
        """y = conv(source), with y's statistics, and what forming the source left behind (None if it was formed already)."""

    def form(self, activation: Activation, keep_mask: bool) -> Formed:
        """z of an activation that no convolution reads first."""

    def normalise(
        self, statistics: Statistics | None, conv_bias: Tensor | None, norm: nn.BatchNorm2d, rows: int, out: Tensor
    ) -> None:
        """Writes μ, r, γ·r and β − μ·γ·r into out (4, C), of the batch's statistics (and moves the running ones by them) or,
        where there are none, of the running ones. The raw output is without the convolution's bias."""

    def gradient(
        self, paths: list[Path], added: list[Tensor], mask: Mask | None, shape: Shape
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The gradient of a value of this shape: Σ convᵀ(dy) + Σ added, masked: ds; and for each of the mask's ys
        (Σ ds, Σ ds·(y − μ)). With no mask it is the plain sum (a region's input)."""

    def finish(self, sums: tuple[Tensor, Tensor], norm: Norm, rows: int, out: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Writes dγ and dβ into out (2, C) and returns c1, c2, c0."""
