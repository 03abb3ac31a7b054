"""A training's position, and the saver that keeps it: the loop asks a saver, and knows of no folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pkgutil
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from fastbn import training
from fastbn.data.feed import Feed
from fastbn.errors import UsageError
from fastbn.recipe import ResolvedRecipe
from fastbn.training.totals import Totals

if TYPE_CHECKING:
    from fastbn.training.distributed.ranks import Ranks
    from fastbn.training.state.custom import Custom
    from fastbn.training.step import TrainingStep


@dataclasses.dataclass
class Position:
    """A training's position: `step` steps of epoch `epoch` are done, and these are its totals."""

    epoch: int
    step: int
    totals: Totals


class Saver(Protocol):
    """A saver keeps a run: its metrics and checkpoints."""

    history: list[dict[str, Any]]  # a dict per epoch that is over

    def start(self, step: TrainingStep) -> Position:
        """Return the position to train from, model and optimizer restored, or the beginning."""

    def save(self, step: TrainingStep, position: Position) -> None:
        """Keep the checkpoint of this position."""

    def epoch(self, step: TrainingStep, position: Position, line: dict[str, Any]) -> None:
        """Keep the metrics of an epoch that is over, and its checkpoint."""


def kept(
    out: str | os.PathLike[str] | None,
    resume: bool,
    model: nn.Module,
    train: Feed,
    test: Feed | None,
    recipe: ResolvedRecipe,
    custom: Custom,
    ranks: Ranks,
    saver: Saver | None,
) -> contextlib.AbstractContextManager[Saver | None]:
    """Return what keeps a training of `fit`: the saver that it was given, or one for the folder `out`, on the
    first rank alone; the folder is closed when the context ends. Raises UsageError for what no folder
    keeps."""
    if out is None:
        if resume:
            raise UsageError("resume goes on with the run in a folder, and fit was given none; give out=")
        return contextlib.nullcontext(saver)
    if saver is not None:
        raise UsageError("out= keeps the training in a folder, saver= in another way; give one of them")
    if resume and custom.optimizer is not None:
        raise UsageError(
            "resume restores the state of fastbn's own optimizers, sgd and adam, and fit was given another; "
            "leave resume out"
        )
    keep = pkgutil.resolve_name(training.KEEPER[0])
    keeper: contextlib.AbstractContextManager[Saver | None] = keep(
        os.fspath(out), resume, model, train, test, recipe, ranks
    )
    return keeper
