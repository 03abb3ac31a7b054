"""The other parts of a training step that run by kernels on CUDA: the batch from the data set's bytes, and
the flat vector's update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbn.engine import select


def usable(device: torch.device) -> bool:
    """Return whether the Triton kernels run on this device."""
    return device.type == "cuda" and select.why_not_triton(device, torch.float16) == ""


def batch(
    images: Tensor, table: Tensor, indices: Tensor, offsets: Tensor | None, flips: Tensor | None, pad: int
) -> Tensor:
    """Return the images (N, H, W, 3) at `indices` (B,), cropped and mirrored by an epoch's draws where there
    are any, normalised by the table: (B, 3, H, W), channels last, in the table's dtype."""
    from fastbn.kernels.triton import augment

    with torch.cuda.device_of(images):  # Triton launches on the current device
        return augment.batch(images, table, indices, offsets, flips, pad)


class Update:
    """The update of one flat vector (n,) float32, in place, withheld as a whole where it is not allowed or
    not finite."""

    def __init__(self, vector: Tensor):
        from fastbn.kernels.triton import optimizer

        self._kernels, self._scratch = optimizer, optimizer.scratch_for(vector)

    def sgd(
        self,
        vector: Tensor,
        gradient: Tensor,
        momentum: Tensor,
        lr: Tensor,
        allowed: Tensor,
        **constants: Any,
    ) -> Tensor:
        """Take one step of SGD, and return whether it was taken, a bool scalar. constants: weight_decay,
        momentum_factor, nesterov."""
        moved = torch.empty_like(allowed)
        with torch.cuda.device_of(vector):
            self._kernels.sgd(vector, gradient, momentum, self._scratch, lr, allowed, moved, **constants)
        return moved

    def adam(
        self,
        vector: Tensor,
        gradient: Tensor,
        mean: Tensor,
        square: Tensor,
        steps: Tensor,
        lr: Tensor,
        allowed: Tensor,
        **constants: Any,
    ) -> Tensor:
        """Take one step of Adam, and return whether it was taken, a bool scalar. constants: weight_decay,
        beta1, beta2, eps."""
        moved = torch.empty_like(allowed)
        with torch.cuda.device_of(vector):
            self._kernels.adam(
                vector, gradient, mean, square, steps, self._scratch, lr, allowed, moved, **constants
            )
        return moved
