"""Where training stands, and what keeps it: the loop asks a saver, and knows of no folder."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

from fastbn.training.totals import Totals

if TYPE_CHECKING:
    from fastbn.training.step import TrainingStep


@dataclasses.dataclass
class Position:
    """Where training stands: `step` steps of epoch `epoch` are done, and these are its totals."""

    epoch: int
    step: int
    totals: Totals


class Saver(Protocol):
    """What keeps a run: its metrics and checkpoints."""

    history: list[dict[str, Any]]  # a dict per epoch that is over

    def start(self, step: TrainingStep) -> Position:
        """Return the position to train from, model and optimizer restored, or the beginning."""

    def save(self, step: TrainingStep, position: Position) -> None:
        """Keep the checkpoint of this position."""

    def epoch(self, step: TrainingStep, position: Position, line: dict[str, Any]) -> None:
        """Keep the metrics of an epoch that is over, and its checkpoint."""
