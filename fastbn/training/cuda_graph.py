"""A step as one CUDA graph a batch size: its launches are recorded once and replayed, so that launching costs
next to nothing.

What the host hands to a step lies in tensors of fixed address that the graph reads: the batch, the learning
rate, the totals (and a feed keeps an epoch's draws where they are). A batch size's first step runs as it is:
it compiles what is not yet compiled. What was recorded of other sizes goes before it, and is recorded again
when it is next needed: a plan may leave no memory for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastbn.data.feed import Inputs
from fastbn.engine.context import unrecorded
from fastbn.engine.interface import Record
from fastbn.engine.triton.cuda_graphs import Recorder
from fastbn.errors import MachineError, is_out_of_memory

if TYPE_CHECKING:
    from fastbn.training.totals import Totals

Compute = Callable[[Inputs, Tensor, Any], None]


class Captured:
    """Takes steps by `compute`, which the host must not wait in, and which must find all that it reads in
    its arguments."""

    def __init__(
        self, compute: Compute, device: torch.device, recorder: Callable[[torch.device], Record] = Recorder
    ):
        self._compute, self._device, self._recorder = compute, device, recorder
        self._replays: dict[int, Callable[[], None]] = {}
        self._inputs: dict[int, Inputs] = {}
        self._lr = torch.zeros((), dtype=torch.float64, device=device)
        self._totals: Totals | None = None

    def __call__(self, inputs: Inputs, lr: Tensor, totals: Totals) -> None:
        n = len(inputs[0])
        self._adopt(totals)
        self._lr.copy_(lr)
        if n not in self._inputs:
            self._replays.clear()
            # with a pool of its own: a pool that no graph is left of can't be used again
            self._record = self._recorder(self._device)
            self._inputs[n] = tuple(given.clone(memory_format=torch.preserve_format) for given in inputs)
            with unrecorded():
                self._compute(self._inputs[n], self._lr, totals)
            return
        for held, given in zip(self._inputs[n], inputs, strict=True):
            held.copy_(given)
        if n not in self._replays:
            self._replays[n] = self._recorded(n, totals)
        self._replays[n]()

    def _recorded(self, n: int, totals: Totals) -> Callable[[], None]:
        try:
            with unrecorded():
                return self._record(lambda: self._compute(self._inputs[n], self._lr, totals))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise MachineError(
                f"a step of this network can't be recorded as a CUDA graph ({str(error).splitlines()[0]}): "
                "something that runs stock in it "
                "waits for the device, as a BatchNorm without momentum does (explain() lists what runs "
                "stock); "
                "--engine reference takes steps as they come"
            ) from error

    def _adopt(self, totals: Totals) -> None:
        """Make the first totals' tensors serve all: new ones are started where they stand, in the same place.
        Old ones must have been read."""
        if self._totals is None:
            self._totals = totals
        if totals is not self._totals:
            for name in ("loss", "correct", "finite"):
                place = getattr(self._totals, name)
                place.copy_(getattr(totals, name))
                setattr(totals, name, place)
            self._totals = totals
