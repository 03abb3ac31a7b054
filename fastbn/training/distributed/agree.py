"""The loop asks of the ranks that they fit the batch, start from the same bits, and bring their
running statistics together."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn

from fastbn.data.feed import Feed
from fastbn.engine import fused_forward
from fastbn.engine.context import synchronised
from fastbn.errors import UsageError
from fastbn.recipe import ResolvedRecipe
from fastbn.training.distributed.ranks import Ranks
from fastbn.training.distributed.sync_batchnorm import Synchronised
from fastbn.training.saving import Position, Saver
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals


def check(ranks: Ranks, source: Feed, recipe: ResolvedRecipe) -> None:
    """Raises UsageError where a batch can't be shared equally, or there are fewer samples than ranks."""
    if ranks.count == 1:
        return
    if recipe.batch_size % ranks.count:
        below = recipe.batch_size // ranks.count * ranks.count
        nearest = f"{below or ranks.count} or {below + ranks.count}" if below else f"{ranks.count}"
        asked = f"--batch-size {recipe.batch_size} is the global batch"
        raise UsageError(f"{asked}, and not divisible by {ranks.count} ranks; give {nearest}")
    if len(source) < ranks.count:
        raise UsageError(
            f"{source.name} has {len(source)} images to train on, fewer than the {ranks.count} ranks; start "
            "fewer"
        )


def start(step: TrainingStep, saver: Saver | None) -> tuple[Position, list[dict[str, Any]]]:
    """Return the position to train from and the epochs before it: what the first rank's folder says, and its
    bits, on every rank."""
    ranks, device = step.exchange.ranks, step.feed.device
    position = ranks.agree(lambda: saver.start(step) if saver else Position(0, 0, Totals.zero(device)))
    history = list(saver.history) if saver else []
    if ranks.count == 1:
        return position, history
    totals = position.totals
    epoch, number, images, history = ranks.told((position.epoch, position.step, totals.images, history))
    trains = {id(p) for p in step.flat.parameters}
    others = [t for t in (*step.model.parameters(), *step.model.buffers()) if id(t) not in trains]
    ranks.copy([step.flat.vector, *step.optimizer.state.values(), *others, totals.loss, totals.correct])
    totals.images = images
    return Position(epoch, number, totals), history


def statistics(step: TrainingStep) -> contextlib.AbstractContextManager[None]:
    """Inside, with --sync-bn, BatchNorm's statistics are all ranks'. Raises UsageError where a BatchNorm
    is none of the engine's."""
    if not step.recipe.sync_bn or step.exchange.ranks.count == 1:
        return contextlib.nullcontext()
    fused, covered = fused_forward(step.model), set()
    if fused is not None:
        parameter = step.flat.parameters[0]
        graph = fused.latest(parameter.device, parameter.dtype).graph
        covered = {conv.norm for region in graph.regions for conv in region.convs}
    norms = [
        name
        for name, module in step.model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    if left := [name for name in norms if name not in covered]:
        raise UsageError(
            f"--sync-bn is the reference and the native engine's, and {left[0]} runs stock; use "
            "torch.nn.SyncBatchNorm there in a loop of "
            "your own, or leave --sync-bn out"
        )
    return synchronised(Synchronised(step.exchange))


def average(step: TrainingStep) -> None:
    """Turn each running statistic into its mean over the ranks. They all move by the same share of each
    batch's, so the mean of what they have moved to is what the mean would have moved to, whenever it is
    taken; with --sync-bn they are equal already."""
    step.exchange.ranks.average(step.running.parts)
