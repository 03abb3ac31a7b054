"""The frozen weight of a grouped convolution in the CPU kernels' layout (kernels/cpu/products/grouped.h)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbn.graph.regions import Conv


def pack_groups(conv: Conv, w: Tensor, taps: list[tuple[int, int]], lanes: int) -> tuple[Tensor, Tensor]:
    """Lay out a weight (C, C_in/groups, KH, KW) for the forward, and for the input gradient, whose taps come
    in this order.
    lanes: floats a vector."""
    groups, inner, outer = conv.groups, conv.in_channels // conv.groups, conv.channels // conv.groups
    if inner == outer == 1:
        both = F.pad(w.flatten(1).t(), (0, -groups % lanes)).contiguous()  # (taps, C)
        return both, both
    forward = w.view(groups, outer, inner, -1).permute(3, 0, 2, 1)  # (taps, groups, inner, outer)
    rows, columns = [i for i, _ in taps], [j for _, j in taps]
    backward = w.view(groups, outer, inner, *conv.kernel).permute(3, 4, 0, 1, 2)[rows, columns]
    return _blocks(forward, lanes), _blocks(backward, lanes)


def _blocks(m: Tensor, lanes: int) -> Tensor:
    """Return weights (taps, groups, K, C) by blocks of the groups' output channels, flat: of each block
    (taps, K of all groups that it touches, block)."""
    _, groups, _, outer = m.shape
    width = lanes if outer % (2 * lanes) else 2 * lanes
    blocks = []
    for start in range(0, groups * outer, width):
        first, last = start // outer, (min(start + width, groups * outer) - 1) // outer
        together = torch.stack([torch.block_diag(*tap) for tap in m[:, first : last + 1]])
        own = together[:, :, start - first * outer :][:, :, :width]
        blocks.append(F.pad(own, (0, width - own.shape[2])).flatten())
    return torch.cat(blocks)
