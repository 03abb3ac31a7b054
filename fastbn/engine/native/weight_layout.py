"""Frozen weights in the CPU kernels' layouts: transformed once, read at every step."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbn.engine.native.algorithms import RAW
from fastbn.engine.native.group_layout import pack_groups
from fastbn.graph.regions import Conv

G = {  # of Winograd's weight transform G w Gᵀ: Lavin, Gray 2016
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}


@dataclasses.dataclass(frozen=True)
class PackedWeight:
    """A frozen weight in the kernels' layouts, for the forward and for the input gradient."""

    forward: Tensor
    backward: Tensor
    M: int  # of Winograd's F(M×M, 3×3), 0 for the direct sum, or RAW: both are the weight itself


def pack(conv: Conv, weight: Tensor, M: int, lanes: int) -> PackedWeight:
    """A weight (C, C_in, KH, KW) for Winograd's F(M×M, 3×3), or for the direct sum where M is 0; lanes:
    floats a vector. Where M is RAW it is the weight itself, copied only if it is not contiguous float32."""
    w = weight.detach().to("cpu", torch.float32)
    if conv.groups > 1:
        rows, columns = _by_parity(conv)
        return PackedWeight(*pack_groups(conv, w, list(zip(rows, columns, strict=True)), lanes), 0)
    if M == RAW:
        w = w.contiguous()
        return PackedWeight(w, w, RAW)
    if M:
        return PackedWeight(
            _transformed(w, M, lanes), _transformed(w.flip(2, 3).transpose(0, 1), M, lanes), M
        )
    forward = w.permute(2, 3, 1, 0).flatten(0, 1)  # (taps, C_in, C)
    rows, columns = _by_parity(conv)
    backward = w.permute(2, 3, 0, 1)[rows, columns]  # (taps, C, C_in)
    return PackedWeight(_blocks(forward, lanes), _blocks(backward, lanes), 0)


def _transformed(w: Tensor, M: int, lanes: int) -> Tensor:
    """G w Gᵀ, ((M+2)², C_in, C), computed in float64 and rounded once; C_in filled up to whole vectors."""
    transform = torch.tensor(G[M], dtype=torch.float64)
    u = torch.einsum("ia,ocab,jb->ijco", transform, w.double(), transform).flatten(0, 1).float()
    return _blocks(F.pad(u, (0, 0, 0, -u.shape[1] % lanes)), lanes)


def _blocks(m: Tensor, lanes: int) -> Tensor:
    """(taps, K, C) -> for each block of two vectors of output channels, and a last one of one, (taps, K,
    block), flat."""
    m = F.pad(m, (0, -m.shape[2] % lanes))
    pair = 2 * lanes
    sizes = [pair] * (m.shape[2] // pair) + ([lanes] if m.shape[2] % pair else [])
    return torch.cat([block.flatten() for block in m.split(sizes, 2)])


def _by_parity(conv: Conv) -> tuple[list[int], list[int]]:
    """The kernel's rows and columns in the order in which the input gradient's parity classes read them."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = conv.kernel, conv.stride, conv.padding, conv.dilation
    taps = [
        (i, j)
        for y in range(sh)
        for x in range(sw)
        for i in range(kh)
        for j in range(kw)
        if (y + ph - i * dh) % sh == 0 and (x + pw - j * dw) % sw == 0
    ]
    return [i for i, _ in taps], [j for _, j in taps]
