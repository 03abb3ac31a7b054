"""One training step: load -> forward -> loss -> backward -> update, with nothing read back from the device."""

from __future__ import annotations

import dataclasses
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbn.config import Recipe
from fastbn.data.feed import Feed, Inputs
from fastbn.engine import fused_forward, stepping
from fastbn.training.captured import Captured
from fastbn.training.distributed.exchange import Exchange, Found
from fastbn.training.distributed.ranks import ALONE, Ranks
from fastbn.training.flat import Flat
from fastbn.training.optimizer import Optimizer


@dataclasses.dataclass
class Totals:
    """What an epoch adds up, on the device."""

    loss: Tensor  # float64: Σ loss over images
    correct: Tensor  # int64
    images: int
    finite: Tensor  # bool: every loss, gradient and update so far

    @staticmethod
    def zero(device: torch.device) -> Totals:
        def scalar(value: float | bool, dtype: torch.dtype) -> Tensor:
            return torch.tensor(value, dtype=dtype, device=device)

        return Totals(scalar(0, torch.float64), scalar(0, torch.int64), 0, scalar(True, torch.bool))

    def add(self, found: Found) -> None:
        """Adds a batch's figures, on the device. `images` is counted by the host."""
        self.loss += found.loss.double() * found.images
        self.correct += found.correct

    def mean(self, prefix: str) -> dict[str, float]:
        """Mean loss and the fraction correct, as a metrics line names them."""
        return {f"{prefix}_loss": self.loss.item() / self.images, f"{prefix}_accuracy": self.correct.item() / self.images}


class Step:
    """The model, its flat vector and its optimizer, ready to take batches."""

    def __init__(self, model: nn.Module, feed: Feed, recipe: Recipe, ranks: Ranks = ALONE):
        self.model, self.feed = model, feed
        self.exchange = Exchange(ranks, feed.device)
        self._batch_size = recipe.batch_size
        self.flat = Flat(model)
        self.optimizer = Optimizer(recipe, self.flat.vector, self.flat.mask)
        self._take = Captured(self._compute, feed.device) if _capturable(model, feed.device) else self._compute

    def __call__(self, inputs: Inputs, lr: float, totals: Totals, images: int | None = None, heard: int | None = None) -> None:
        """Trains on one of the feed's batches. A loss, gradient or update that is not finite withholds the update, and `totals` knows.

        Of a batch of `images` that ranks share, `inputs` are this rank's; `heard`: the signal that asks it to stop, if one did.
        """
        own = len(inputs[0])
        inputs = inputs if own else self._stand_in
        self.exchange.begin(len(inputs[0]), own, own if images is None else images, heard)
        self._take(inputs, torch.full((), lr, dtype=torch.float64, device=self.feed.device), totals)
        totals.images += own if images is None else images

    def _compute(self, inputs: Inputs, lr: Tensor, totals: Totals) -> None:
        x, labels = self.feed.load(*inputs)
        logits = self.model(x)
        loss = F.cross_entropy(at_least_float32(logits), labels)
        self.exchange.weighed(loss).backward()
        self.flat.gather()
        found = self.exchange.sum(self.flat.gradient, Found.of(logits, labels, loss))
        moved = self.optimizer.update(self.flat.vector, self.flat.gradient, lr, torch.isfinite(found.loss))
        totals.add(found)
        totals.finite &= moved

    @functools.cached_property
    def _stand_in(self) -> Inputs:
        """A sample that counts for nothing, for a rank which the ragged last batch leaves without one: with it BatchNorm has a batch, and
        the rank takes part in whatever the others wait for."""
        return tuple(given[:1] for given in next(self.feed.batches(self._batch_size, 0, self.exchange.ranks.share)))


def at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _capturable(model: nn.Module, device: torch.device) -> bool:
    """Whether a step is launches alone, nothing of it decided by the host: by the Triton engine, on CUDA."""
    fused = fused_forward(model)
    return device.type == "cuda" and fused is not None and fused.engine in ("auto", "triton") and stepping.usable(device)
