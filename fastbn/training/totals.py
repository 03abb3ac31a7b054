"""The figures of a batch and of an epoch, on the device."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fastbn.machine import devices


@dataclasses.dataclass(frozen=True)
class StepResult:
    """A batch's figures, on the device."""

    loss: Tensor  # mean
    correct: Tensor  # int64
    images: int | Tensor  # n

    @staticmethod
    def of(logits: Tensor, labels: Tensor, loss: Tensor) -> StepResult:
        """Return the result of a step on logits (N, classes) and labels (N,), by the loss's mean."""
        return StepResult(loss.detach(), (logits.detach().argmax(1) == labels).sum(), labels.shape[0])


@dataclasses.dataclass
class Totals:
    """The sums of an epoch, on the device."""

    loss: Tensor  # float64: Σ loss over images
    correct: Tensor  # int64
    images: int
    finite: Tensor  # bool: every loss, gradient and update so far
    # int64: labels among the five likeliest classes; where an evaluation counts them
    top5: Tensor | None = None

    @staticmethod
    def zero(device: torch.device) -> Totals:
        """Return the sums at an epoch's beginning, on this device."""

        def scalar(value: float, dtype: torch.dtype) -> Tensor:
            return devices.number(value, dtype, device)

        return Totals(scalar(0, torch.float64), scalar(0, torch.int64), 0, scalar(True, torch.bool))

    def add(self, result: StepResult) -> None:
        """Add a batch's figures, on the device. `images` is counted by the host."""
        self.loss += result.loss.double() * result.images
        self.correct += result.correct

    def mean(self, prefix: str) -> dict[str, float]:
        """Return the mean loss and the fraction correct, as a metrics line names them."""
        figures = {
            f"{prefix}_loss": self.loss.item() / self.images,
            f"{prefix}_accuracy": self.correct.item() / self.images,
        }
        return (
            figures
            if self.top5 is None
            else figures | {f"{prefix}_top5_accuracy": self.top5.item() / self.images}
        )
