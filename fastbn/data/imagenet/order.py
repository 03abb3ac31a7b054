"""The order of an epoch's samples, drawn by (seed, epoch)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastbn import draws

WINDOW = 8192  # samples; some 900 MB of ImageNet's files, which the system keeps in memory where it can


class Order(NamedTuple):
    """The order of an epoch's samples, and the one in which their bytes are best fetched."""

    samples: np.ndarray  # (n,) int64, a permutation
    # (n,) int64: the same samples as they lie in their shards; None: no order is better
    fetched: np.ndarray | None
    window: int  # no sample comes more than so many places before or after its place in `fetched`


def draw(n: int, seed: int, epoch: int, shard: np.ndarray | None, window: int = WINDOW) -> Order:
    """Draw an order: without shards a permutation. With `shard` (n,), increasing, the shard of each sample:
    the shards in a drawn order, and each sample moved by less than `window` places, so that each shard is
    read once from end to end."""
    if shard is None:
        return Order(draws.permutation(seed, f"epoch/{epoch}/order", n), None, 0)
    names, numbers = np.unique(shard, return_inverse=True)
    # shard k comes at place[k]
    place = np.argsort(draws.permutation(seed, f"epoch/{epoch}/shards", len(names)))
    fetched = np.argsort(place[numbers], kind="stable")
    moved = np.arange(n) + window * draws.uniform(seed, f"epoch/{epoch}/order", n)
    return Order(fetched[np.argsort(moved, kind="stable")], fetched, window)
