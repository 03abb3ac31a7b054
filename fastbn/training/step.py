"""One training step: load -> forward -> loss -> backward -> update, with nothing read back from the device."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbn.config import Recipe
from fastbn.data.feed import Feed, Inputs
from fastbn.engine import fused_forward, stepping
from fastbn.training.captured import Captured
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

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Adds, on the device, a batch whose mean loss this is. `images` is counted by the host."""
        self.loss += loss.detach().double() * labels.shape[0]
        self.correct += (logits.detach().argmax(1) == labels).sum()

    def mean(self, prefix: str) -> dict[str, float]:
        """Mean loss and the fraction correct, as a metrics line names them."""
        return {f"{prefix}_loss": self.loss.item() / self.images, f"{prefix}_accuracy": self.correct.item() / self.images}


class Step:
    """The model, its flat vector and its optimizer, ready to take batches."""

    def __init__(self, model: nn.Module, feed: Feed, recipe: Recipe):
        self.model, self.feed = model, feed
        self.flat = Flat(model)
        self.optimizer = Optimizer(recipe, self.flat.vector, self.flat.mask)
        self._take = Captured(self._compute, feed.device) if _capturable(model, feed.device) else self._compute

    def __call__(self, inputs: Inputs, lr: float, totals: Totals) -> None:
        """Trains on one of the feed's batches. A loss, gradient or update that is not finite withholds the update, and `totals` knows."""
        self._take(inputs, torch.full((), lr, dtype=torch.float64, device=self.feed.device), totals)
        totals.images += len(inputs[0])

    def _compute(self, inputs: Inputs, lr: Tensor, totals: Totals) -> None:
        x, labels = self.feed.load(*inputs)
        logits = self.model(x)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        self.flat.gather()
        moved = self.optimizer.update(self.flat.vector, self.flat.gradient, lr, torch.isfinite(loss.detach()))
        totals.add(logits, labels, loss)
        totals.finite &= moved


def _capturable(model: nn.Module, device: torch.device) -> bool:
    """Whether a step is launches alone, nothing of it decided by the host: by the Triton engine, on CUDA."""
    fused = fused_forward(model)
    return device.type == "cuda" and fused is not None and fused.engine in ("auto", "triton") and stepping.usable(device)
