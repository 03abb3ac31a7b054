"""Batches by indexing: normalise, zero-pad, crop and mirror as one gather of bytes and one table look-up.

An epoch's order, crops and mirrorings are drawn on the CPU from (seed, epoch), the crop and the mirroring
indexed by sample: an image's augmentation does not depend on the batch it falls in, nor on the device or the
number of ranks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from fastbn import draws
from fastbn.data.images import BRIGHTNESS, PADDING, Images
from fastbn.engine.triton import step_kernels
from fastbn.errors import UsageError


@dataclass(frozen=True, eq=False)
class Epoch:
    """The draws of one epoch for n samples."""

    order: Tensor  # (n,) int64, a permutation: batch k is order[k·B : (k+1)·B]
    # (n, 2) int64 in [0, 2·pad]: sample i's crop starts at this row and column of its padded image
    offsets: Tensor
    flips: Tensor  # (n,) bool: sample i is mirrored after the crop
    pad: int
    brightness: Tensor | None = None  # (n,) float32: what is added to sample i's pixels in [0, 1]

    def to(self, device: torch.device | str) -> Epoch:
        brightness = None if self.brightness is None else self.brightness.to(device)
        return Epoch(
            self.order.to(device), self.offsets.to(device), self.flips.to(device), self.pad, brightness
        )


def draw_epoch(n: int, seed: int, epoch: int, pad: int, flip: bool, brightness: bool = False) -> Epoch:
    """Return the draws of an epoch for n samples, on the CPU. Without `pad` every offset is 0; without `flip`
    nothing is mirrored."""
    offsets, flips = torch.zeros(n, 2, dtype=torch.int64), torch.zeros(n, dtype=torch.bool)
    if pad:
        offsets = torch.from_numpy(draws.integers(seed, f"epoch/{epoch}/offsets", 2 * n, 2 * pad + 1)).view(
            n, 2
        )
    if flip:
        flips = torch.from_numpy(draws.integers(seed, f"epoch/{epoch}/flips", n, 2)).bool()
    light = None
    if brightness:
        light = torch.from_numpy(
            (2 * draws.uniform(seed, f"epoch/{epoch}/brightness", n) - 1) * BRIGHTNESS
        ).float()
    return Epoch(
        torch.from_numpy(draws.permutation(seed, f"epoch/{epoch}/order", n)), offsets, flips, pad, light
    )


def batch(images: Images, indices: Tensor, epoch: Epoch | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the images at `indices` (B,) int64, normalised and, given an epoch's draws, cropped, mirrored
    and brightened: (B, 3, H, W), channels last.

    Indices and draws lie on the images' device; nothing is copied to or awaited by the host.
    The padding is zero after normalisation. `epoch=None`: as they are, for evaluation.
    """
    n, height, width, _ = images.images.shape
    if epoch is not None and epoch.order.shape[0] != n:
        raise UsageError(
            f"the epoch was drawn for {epoch.order.shape[0]} samples, the set {images.name} has {n}; draw "
            f"it for {n}"
        )
    if epoch is not None and epoch.brightness is not None:
        plain = dataclasses.replace(epoch, brightness=None)
        return _brightened(batch(images, indices, plain, dtype), images, epoch.brightness[indices])
    if step_kernels.usable(images.device):
        draws = (None, None, 0) if epoch is None else (epoch.offsets, epoch.flips, epoch.pad)
        return step_kernels.batch(images.images, images.table(dtype), indices, *draws)
    if epoch is None:
        values = images.images.index_select(0, indices).view(-1, height, width * 3).to(torch.int32)
    else:
        values = _crop(images, indices, epoch)
    channel = torch.arange(3, device=values.device, dtype=torch.int32) * (PADDING + 1)
    values += channel.repeat(width)
    normalised = images.table(dtype).index_select(0, values.view(-1))
    return normalised.view(-1, height, width, 3).permute(0, 3, 1, 2)


def _brightened(x: Tensor, images: Images, light: Tensor) -> Tensor:
    """Return (B, 3, H, W) with `light` (B,) added in units of [0, 1], and what leaves them cut off."""
    light = light[:, None, None].to(x.dtype)
    parts = []
    # numbers of the host: nothing is copied to the device
    for c, (mean, std) in enumerate(zip(images.mean, images.std, strict=True)):
        parts.append(((x[:, c] * std + (light + mean)).clamp_(0, 1) - mean) / std)
    return torch.stack(parts, 3).permute(0, 3, 1, 2)


def _crop(images: Images, indices: Tensor, epoch: Epoch) -> Tensor:
    """Return (B, H, 3·W) int32: the bytes of the cropped and mirrored images, 256 where the crop leaves the
    image."""
    _, height, width, _ = images.images.shape
    offsets, flips = epoch.offsets[indices], epoch.flips[indices]
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    y = rows + (offsets[:, :1] - epoch.pad)  # (B, H): the row of the unpadded image
    x = torch.where(flips[:, None], width - 1 - columns, columns) + (offsets[:, 1:] - epoch.pad)  # (B, W)
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width)).repeat_interleave(3, dim=1)[
        :, None, :
    ]
    # (B, H): where it starts among all bytes
    row = (indices[:, None] * height + y.clamp(0, height - 1)) * (3 * width)
    # (B, 3·W)
    column = (x.clamp(0, width - 1)[:, :, None] * 3 + torch.arange(3, device=images.device)).flatten(1)
    values = images.images.view(-1).index_select(0, (row[:, :, None] + column[:, None, :]).view(-1))
    return torch.where(inside, values.view(inside.shape).to(torch.int32), PADDING)
