"""The exchange of the ranks in a step: one all-reduce of the gradient, with the step's figures and requests
to stop behind it.

Of n samples in a batch a rank has n_r, and its loss is their mean. Weighted by n_r/n before the backward, the
ranks' gradients add up to the whole batch's, ragged or not. A loss or gradient that is not finite on one rank
is so in everybody's sum: all withhold the update."""

from __future__ import annotations

import collections
import signal
import time

import torch
from torch import Tensor

from fastbn.training.distributed.ranks import Ranks
from fastbn.training.totals import StepResult, Totals

SIGNALS = (signal.SIGTERM, signal.SIGINT)  # the first that any rank has heard is everybody's
FIGURES = 2 + len(SIGNALS)  # that a step's message holds behind the gradient
LAG = 4  # steps by which a CUDA device may be behind its host before the host looks at what was told
PAUSE = 0.0005


def message_bytes(parameters: int) -> int:
    """Return the bytes of a step's one message, float32."""
    return 4 * (parameters + FIGURES)


class Exchange:
    """The ranks' side of a step. Alone, it passes everything through. What differs from step to step lies in
    tensors of fixed address, so that a step which is a CUDA graph holds the all-reduce too."""

    def __init__(self, ranks: Ranks, device: torch.device):
        self.ranks = ranks
        self.own, self.all = 1, 1  # samples in this rank's tensors and in the whole batch
        self.weight = torch.ones((), dtype=torch.float64, device=device)  # n_r/n
        self._images = torch.ones((), dtype=torch.float64, device=device)  # n
        self._asked = torch.zeros(len(SIGNALS), device=device)
        self._told = torch.zeros(len(SIGNALS), device=device)
        self._behind: collections.deque[tuple[torch.cuda.Event, Tensor]] = collections.deque()

    def begin(self, taken: int, counted: int, everybody: int, heard: int | None) -> None:
        """Begin a step, of `everybody` samples; this rank computes `taken` and counts `counted` of them: none
        where a ragged batch left it without a sample, and it takes another's so as to keep step. `heard`: the
        signal that asks it to stop, if one did."""
        if self.ranks.count == 1:
            return
        self.own, self.all = taken, everybody
        self.weight.fill_(counted / everybody)
        self._images.fill_(everybody)
        for place, number in enumerate(SIGNALS):
            self._asked[place].fill_(float(heard == number))

    def weighed(self, loss: Tensor) -> Tensor:
        """Return the mean over this rank's samples as its part in the mean over all."""
        return loss if self.ranks.count == 1 else loss * self.weight.to(loss.dtype)

    def sum(self, gradient: Tensor, result: StepResult) -> StepResult:
        """Add the ranks' gradients, in place, and their figures."""
        if self.ranks.count == 1:
            return result
        loss, correct = result.loss * self.weight, result.correct * (self.weight > 0)
        figures = torch.stack([loss.to(gradient.dtype), correct.to(gradient.dtype)])
        gradient *= self.weight > 0
        message = self.ranks.sum(torch.cat([gradient, figures, self._asked.to(gradient.dtype)]))
        gradient.copy_(message[:-FIGURES])
        loss, correct = message[-FIGURES : -len(SIGNALS)].clone()
        self._told.copy_(message[-len(SIGNALS) :])
        return StepResult(loss, correct.round().long(), self._images)

    def stopping(self) -> int | None:
        """Return the signal that a rank was asked to stop by before a step that all have taken: the same
        answer on every rank. On CUDA it is that of LAG steps ago, so that the host need not wait for the
        device."""
        # its launcher's ranks are threads, which hear no signal, and to read is to wait for the step
        if self._told.device.type == "xla":
            return None
        if not self._told.is_cuda:
            return _signal(self._told)
        copy = torch.empty(len(SIGNALS), pin_memory=True)
        copy.copy_(self._told, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._behind.append((event, copy))
        return _signal(self._oldest()) if len(self._behind) > LAG else None

    def finish(self) -> None:
        """Wait for the steps that a CUDA device has still to take: a rank that is lost in one shows here, for
        a replayed graph's collectives have no watchdog."""
        while self._behind:
            self._oldest()

    def evaluated(self, totals: Totals, heard: int | None) -> int | None:
        """Add up the totals of a held-out set that the ranks share, on every rank, and return the signal that
        any rank has heard."""
        if self.ranks.count == 1:
            return heard
        asked = [float(heard == number) for number in SIGNALS]
        # a rank without a batch has none, and takes the others'
        top5, counts = totals.top5, float(totals.top5 is not None)
        figures = [
            t.double().view(1)
            for t in (totals.loss, totals.correct, totals.correct * 0 if top5 is None else top5)
        ]
        message = self.ranks.sum(
            torch.cat([*figures, totals.loss.new_tensor([totals.images, counts, *asked])])
        )
        totals.loss, totals.correct, totals.images = message[0], message[1].round().long(), int(message[3])
        totals.top5 = message[2].round().long() if message[4] > 0 else None
        return _signal(message[5:])

    def _oldest(self) -> Tensor:
        event, copy = self._behind.popleft()
        deadline = time.monotonic() + self.ranks.timeout
        while not event.query():
            if time.monotonic() > deadline:
                raise self.ranks.lost("a step", self.ranks.timeout, "timed out")
            time.sleep(PAUSE)
        return copy


def _signal(told: Tensor) -> int | None:
    return next((int(number) for number, ranks in zip(SIGNALS, told.tolist(), strict=True) if ranks), None)
