"""The resampling of boxes of images of differing sizes to one size, mirrored, normalised: bilinear, by
gathering pixels.

y = top + (i + ½)·height/S − ½ within the image, x likewise     (F.interpolate with align_corners=False,
of the box) out = (bilinear(y, x)/255 − mean)/std
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastbn.data.images import IMAGENET_MEAN, IMAGENET_STD

ROW = 9  # first byte, height, width, the box's top, left, height, width, 1 where mirrored, label
AT_ONCE = 1 << 21  # output pixels: bounds the memory for indices


def resample(content: Tensor, rows: Tensor, size: int) -> Tensor:
    """Resample. content: uint8, every image's pixels (h, w, 3) from its first byte on, a multiple of 3; rows
    (n, ROW) float64, beside it. Returns (n, 3, size, size) float32, channels last. A sample's bits don't
    depend on its neighbours."""
    pixels = content[: len(content) // 3 * 3].view(-1, 3)
    std = torch.tensor(IMAGENET_STD, dtype=torch.float64)
    scale = (1 / (255 * std)).float().to(content.device, non_blocking=True)
    shift = (
        (-torch.tensor(IMAGENET_MEAN, dtype=torch.float64) / std)
        .float()
        .to(content.device, non_blocking=True)
    )
    out = torch.empty(len(rows), size, size, 3, device=content.device)
    if not len(rows):
        return out.permute(0, 3, 1, 2)
    step = max(1, AT_ONCE // (size * size))
    for part, drawn in zip(out.split(step), rows.split(step), strict=True):
        torch.mul(_bilinear(pixels, drawn, size), scale, out=part)
        part += shift
    return out.permute(0, 3, 1, 2)


def _bilinear(pixels: Tensor, rows: Tensor, size: int) -> Tensor:
    """Return (n, size, size, 3) float32, 0 … 255."""
    first, height, width = rows[:, :3, None].long().unbind(1)  # (n, 1)
    top, left, tall, wide, flip = rows[:, 3:8, None].unbind(1)
    centres = (torch.arange(size, device=rows.device, dtype=torch.float64) + 0.5) / size
    y0, y1, dy = _taps(top + centres * tall, height)  # (n, size)
    x0, x1, dx = _taps(left + torch.where(flip > 0, centres.flip(0), centres) * wide, width)
    # (n, size, 1): where a row starts
    upper, lower = ((first // 3 + y * width)[:, :, None] for y in (y0, y1))
    dx, dy = dx[:, None, :, None], dy[:, :, None, None]

    def row(start: Tensor) -> Tensor:
        low, high = (
            pixels.index_select(0, (start + x[:, None, :]).view(-1)).view(-1, size, size, 3).float()
            for x in (x0, x1)
        )
        return high.sub_(low).mul_(dx).add_(low)

    above, below = row(upper), row(lower)
    return below.sub_(above).mul_(dy).add_(above)


def _taps(position: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two pixels beside each position (n, size) of a side, whose pixel k covers k … k + 1, and the
    second one's weight."""
    last = (length - 1).double()
    centre = torch.minimum((position - 0.5).clamp(min=0), last)
    low = centre.long()
    return low, torch.minimum(low + 1, length - 1), (centre - low).float()
