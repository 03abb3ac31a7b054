"""A step as one CUDA graph a batch size: its launches are recorded once and replayed, so that launching costs next to nothing.

What the host hands to a step lies in tensors of fixed address that the graph reads: indices, the epoch's draws, the learning rate,
the totals. A batch size's first step runs as it is: it compiles what is not yet compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastbn.data.augment import Epoch
from fastbn.engine.operations import Record
from fastbn.engine.replay import Recorder

if TYPE_CHECKING:
    from fastbn.training.step import Totals

Compute = Callable[[Tensor, Epoch, Tensor, Any], None]


class Captured:
    """Takes steps by `compute`, which the host must not wait in, and which must find all that it reads in its arguments."""

    def __init__(self, compute: Compute, device: torch.device, record: Record | None = None):
        self._compute, self._record = compute, record or Recorder(device)
        self._replays: dict[int, Callable[[], None]] = {}
        self._indices: dict[int, Tensor] = {}
        self._lr = torch.zeros((), dtype=torch.float64, device=device)
        self._draws: tuple[Epoch, Epoch] | None = None  # the caller's, and the copy that graphs read
        self._totals: Totals | None = None

    def __call__(self, indices: Tensor, epoch: Epoch, lr: Tensor, totals: Totals) -> None:
        n = len(indices)
        draws = self._drawn(epoch)
        self._adopt(totals)
        self._lr.copy_(lr)
        if n not in self._indices:
            self._indices[n] = indices.clone()
            self._compute(self._indices[n], draws, self._lr, totals)
            return
        self._indices[n].copy_(indices)
        if n not in self._replays:
            self._replays[n] = self._record(lambda: self._compute(self._indices[n], draws, self._lr, totals))
        self._replays[n]()

    def _drawn(self, epoch: Epoch) -> Epoch:
        if self._draws is None:
            self._draws = epoch, Epoch(epoch.order, epoch.offsets.clone(), epoch.flips.clone(), epoch.pad)
        seen, copy = self._draws
        if seen is not epoch:
            copy.offsets.copy_(epoch.offsets)
            copy.flips.copy_(epoch.flips)
            self._draws = epoch, copy
        return copy

    def _adopt(self, totals: Totals) -> None:
        """The first totals' tensors serve all: new ones are started where they stand, in the same place. Old ones must have been read."""
        if self._totals is None:
            self._totals = totals
        if totals is not self._totals:
            for name in ("loss", "correct", "finite"):
                place = getattr(self._totals, name)
                place.copy_(getattr(totals, name))
                setattr(totals, name, place)
            self._totals = totals
