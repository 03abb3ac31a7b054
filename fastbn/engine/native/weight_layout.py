"""Frozen weights in the CPU kernels' layouts: transformed once, read at every step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastbn.engine.native.algorithms import RAW, RAW_CHANNELS_LAST
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
    M: int  # of Winograd's F(M×M, 3×3), 0 for the direct sum, or RAW… − 2·M: both are the weight itself


def pack(conv: Conv, weight: Tensor, M: int, lanes: int) -> PackedWeight:
    """Return a weight (C, C_in, KH, KW) for Winograd's F(M×M, 3×3), or for the direct sum where M is 0;
    lanes: floats a vector. Where M is RAW, or RAW − 2·M for Winograd's, it is the weight itself, copied only
    if it is not float32 in one of PyTorch's two orders."""
    w = weight.detach().to("cpu", torch.float32)
    if conv.groups > 1:
        rows, columns = _by_parity(conv)
        return PackedWeight(*pack_groups(conv, w, list(zip(rows, columns, strict=True)), lanes), 0)
    if M < 0:
        if w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous():
            return PackedWeight(w, w, M + RAW_CHANNELS_LAST - RAW)
        w = w.contiguous()
        return PackedWeight(w, w, M)
    if M:
        turned = w.flip(2, 3).transpose(0, 1)
        return PackedWeight(_transformed(w, M, lanes), _transformed(turned, M, lanes), M)
    (taps, (rows, columns)), (C, C_in) = (math.prod(conv.kernel), _by_parity(conv)), w.shape[:2]
    forward = _blocks(taps, C_in, C, lanes, lambda some: w[some].permute(2, 3, 1, 0).flatten(0, 1))
    backward = _blocks(taps, C, C_in, lanes, lambda some: w[:, some].permute(2, 3, 0, 1)[rows, columns])
    return PackedWeight(forward, backward, 0)


def _transformed(w: Tensor, M: int, lanes: int) -> Tensor:
    """G w Gᵀ, ((M+2)², C_in, C) by blocks, computed in float64 and rounded once; C_in filled up to whole
    vectors."""
    transform = torch.tensor(G[M], dtype=torch.float64)

    def block(some: slice) -> Tensor:
        return torch.einsum("ia,ocab,jb->ijco", transform, w[some].double(), transform).flatten(0, 1)

    return _blocks((M + 2) ** 2, w.shape[1], w.shape[0], lanes, block, -w.shape[1] % lanes)


def _blocks(
    taps: int, K: int, C: int, lanes: int, block: Callable[[slice], Tensor], filled: int = 0
) -> Tensor:
    """Return a weight by blocks of two vectors of output channels, and a last one of one where they are
    uneven, each (taps, K + filled, block), flat; `block` makes (taps, K, …) of some output channels.

    One block at a time: what making them takes beside is soon a multiple of the weight, and PyTorch's
    allocator would keep it."""
    vectors, pair = -(-C // lanes), 2 * lanes
    packed = torch.zeros(taps * (K + filled) * vectors * lanes)
    for start in range(0, vectors * lanes, pair):
        size = min(pair, vectors * lanes - start)
        there = packed[taps * (K + filled) * start :][: taps * (K + filled) * size]
        some = slice(start, min(start + size, C))
        there.view(taps, K + filled, size)[:, :K, : some.stop - start] = block(some)
    return packed


def _by_parity(conv: Conv) -> tuple[list[int], list[int]]:
    """Return the kernel's rows and columns in the order in which the input gradient's parity classes read
    them."""
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
