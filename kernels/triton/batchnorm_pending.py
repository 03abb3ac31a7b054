"""A BatchNorm whose numbers are not yet made: what they are made of, handed to the kernel that reads next
or to a launch of its own (batchnorm_stats.py)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
from torch import Tensor

from .batchnorm_stats import settle_backward_kernel, settle_forward_kernel
from .early_launch import options

# partial results that a reading kernel merges: beyond, every program's share of the reading outweighs a
# launch
MOST = 256


@dataclasses.dataclass(frozen=True)
class Partial:
    """The partial results that a launch's programs left, for others to merge."""

    values: Tensor  # (tiles, rows, C) fp32
    rows: int  # of the raw output

    @property
    def tiles(self) -> int:
        return self.values.shape[0]

    @property
    def few(self) -> bool:
        """Return whether the kernel that reads next shall merge them."""
        return self.tiles <= MOST


def partial(tiles: int, kinds: int, channels: int, rows: int, like: Tensor) -> Partial:
    """Return room for the partial results of so many programs."""
    return Partial(torch.empty((tiles, kinds, channels), dtype=torch.float32, device=like.device), rows)


@dataclasses.dataclass(frozen=True)
class Forward:
    """A BatchNorm that is not yet ready: what its vectors are made of."""

    partial: Partial | None  # of y's statistics; None: the running ones serve
    vectors: Tensor  # (4, C) fp32 rows, out
    weight: Tensor | None  # (C,) each, of any float dtype
    bias: Tensor | None
    conv_bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    batches: Tensor | None  # int64, counts the batches; None: nobody does
    eps: float
    share: float | None  # of this batch in the running statistics; 0: they stay; None: one in all batches

    def arguments(self) -> dict[str, Any]:
        """Return the kernels' arguments."""
        given = self.partial
        return {
            "due_ptr": given and given.values, "due_tiles": given.tiles if given else 0,
            "due_rows": float(given.rows) if given else 0.0,
            "vectors_ptr": self.vectors, "stride": self.vectors.stride(0), "weight_ptr": self.weight,
            "bias_ptr": self.bias,
            "conv_bias_ptr": self.conv_bias, "running_mean_ptr": self.running_mean,
            "running_var_ptr": self.running_var,
            "batches_ptr": self.batches, "eps": float(self.eps), "share": float(self.share or 0.0),
            "MOVES": given is not None and self.share != 0.0, "CUMULATIVE": self.share is None,
            "BLOCK_T": block_t(given),
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Backward:
    """A BatchNorm whose gradient is not yet ended: what it is made of."""

    partial: Partial
    row: int  # of its Σ ds·(y − μ)
    vectors: Tensor  # (4, C) fp32 rows
    affine: Tensor  # (2, C) fp32 rows, out
    batch: bool

    @property
    def few(self) -> bool:
        """Return whether the kernel that reads next shall merge them: beyond 32 channels it has no registers
        left for it, and spills."""
        return self.partial.few and self.vectors.shape[1] <= 32

    def arguments(self) -> dict[str, Any]:
        """Return the kernels' arguments."""
        return {
            "due_ptr": self.partial.values, "due_tiles": self.partial.tiles, "due_row": self.row,
            "due_rows": float(self.partial.rows),
            "due_vectors_ptr": self.vectors, "due_stride": self.vectors.stride(0), "affine_ptr": self.affine,
            "affine_stride": self.affine.stride(0), "BATCH": self.batch,
            "KINDS": self.partial.values.shape[1],
            "BLOCK_T": block_t(self.partial),
        }  # fmt: skip


# what a reading kernel is given where nothing is pending
NOTHING: dict[str, Any] = {
    **dict.fromkeys(("due_ptr", "vectors_ptr", "weight_ptr", "bias_ptr", "conv_bias_ptr")),
    **dict.fromkeys(("running_mean_ptr", "running_var_ptr", "batches_ptr")),
    **{"due_tiles": 0, "due_rows": 0.0, "stride": 0, "eps": 0.0, "share": 0.0},
    **{"MOVES": False, "CUMULATIVE": False, "BLOCK_T": 16},
}


def block_t(given: Partial | None) -> int:
    """Return how many partial results are read at a time: a thousand numbers of each kind, beside whatever
    else the reading kernel holds in registers."""
    return 16 if given is None else max(16, 1024 // triton.next_power_of_2(given.values.shape[2]))


def apart(channels: int, given: Partial | None) -> dict[str, int]:
    """Return how a launch that does nothing else is cut. Many partial results are a long way for one
    program: a program takes few channels then, and a thousand results at a time."""
    if given is None or given.few:
        return {
            "BLOCK_C": min(32, triton.next_power_of_2(channels)),
            "BLOCK_T": block_t(given),
            "num_warps": 4,
        }
    return {"BLOCK_C": 4, "BLOCK_T": 1024, "num_warps": 8}


def launch_forward(end: Forward, dependent: bool) -> None:
    """Write the vectors; the running statistics move."""
    channels = end.vectors.shape[1]
    sizes = apart(channels, end.partial)
    programs = triton.cdiv(channels, sizes["BLOCK_C"])
    counts = programs == 1 or end.share is not None
    if not counts and end.partial is not None and end.batches is not None:
        end.batches.add_(1)  # which every program is about to read
    settle_forward_kernel[(programs,)](
        **end.arguments() | sizes, C=channels, COUNTS=counts, **options(dependent)
    )


def launch_backward(end: Backward, coefficients: Tensor | None, dependent: bool) -> None:
    """Write dγ and dβ, and c1, c2, c0 into coefficients (3, C) if asked."""
    channels = end.vectors.shape[1]
    sizes = apart(channels, end.partial)
    settle_backward_kernel[(triton.cdiv(channels, sizes["BLOCK_C"]),)](
        **end.arguments() | sizes, coefficient_ptr=coefficients, C=channels, **options(dependent)
    )
