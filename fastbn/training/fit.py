"""`fit`: trains one network."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from fastbn import devices
from fastbn.data.feed import Feed, feed
from fastbn.data.imagenet.stream import Stream
from fastbn.data.images import Images
from fastbn.engine import fused_forward
from fastbn.engine.onednn_workaround import spare
from fastbn.errors import UsageError
from fastbn.graph.regions import Unfit
from fastbn.planning import precision
from fastbn.recipe import Recipe, ResolvedRecipe
from fastbn.training.batch_size import fastest
from fastbn.training.distributed import agree
from fastbn.training.distributed.ranks import ALONE, Ranks, joined
from fastbn.training.loop import TrainingLoop, training_mode
from fastbn.training.planner import planner_of
from fastbn.training.progress import Progress
from fastbn.training.saving import Saver
from fastbn.training.signals import stop_request
from fastbn.training.step import TrainingStep


def fit(
    model: nn.Module,
    train: Images | Stream | Iterable[Any],
    test: Images | Stream | Iterable[Any] | None = None,
    val: Images | Stream | Iterable[Any] | None = None,
    *,
    recipe: Recipe | None = None,
    saver: Saver | None = None,
    ranks: Ranks | None = None,
    progress: bool = True,
    log: Callable[[dict[str, Any]], None] | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Trains what requires grad, and returns one dict an epoch: epoch, step, lr, train_loss, train_accuracy,
    test_loss, test_accuracy (val_… too where given; from 100 classes on test_top5_accuracy),
    images_per_second, seconds, evaluation_seconds, peak_memory_bytes, planned_memory_bytes, energy_joules,
    and norms: γ and β in a few numbers a layer.

    model: on the device where it should train; the images are brought there. Accuracies are fractions of 1.
    train, test, val: fastbn.Images; or a DataLoader, or any other iterable of (images, labels), gone through
    once per epoch and cut to batch_size (fastbn.data.batches.Batches): its order is its own, so that one
    process alone can train on it.
    settings: the fields of fastbn.recipe.Recipe (epochs, batch_size, optimizer, lr, seed, …); or a
    `recipe` made of them.
    saver: keeps a run's folder; `python -m fastbn.train` gives one, to the first rank alone.
    ranks: the processes that train together, each with its part of every batch; those of the process group
    that torch.distributed has, if it has one. The first rank's parameters are everybody's, and it alone shows
    progress.
    log: is called with each epoch's dict.

        history = fastbn.fit(model, train, test, epochs=15, batch_size=64)

    Raises UsageError where nothing trains or a setting can't be, MachineError for a precision that the device
    lacks or a batch that its memory does not hold, Diverged when a loss or gradient is not finite (the
    parameters are then as after the last good step)."""
    if recipe is not None and settings:
        raise UsageError(f"give fit a recipe or settings, not both: got recipe and {', '.join(settings)}")
    ranks = joined(next(model.parameters()).device) if ranks is None else ranks
    bar = Progress(0, progress and ranks.first)
    source = feed(train, next(model.parameters()).device, "train")
    resolved = ranks.agree(lambda: resolve(recipe or Recipe(**settings), model, source, ranks, bar.say))
    return follow(prepared(model, source, test, val, resolved, bar, saver, log, ranks))


def resolve(
    recipe: Recipe,
    model: nn.Module,
    source: Feed,
    ranks: Ranks = ALONE,
    say: Callable[[str], None] = lambda line: None,
) -> ResolvedRecipe:
    """Return the recipe with nothing left open, for this model and training set where they are; a batch size
    of "auto" is measured. Raises UsageError for that among several ranks."""
    fused = fused_forward(model)
    automatic = precision.automatic(fused.engine if fused else "stock", source.device)
    if recipe.batch_size != "auto":
        return recipe.resolved(source.default_epochs, automatic)
    if ranks.count > 1:
        raise UsageError(
            f"--batch-size auto is measured by one process, and this is one of {ranks.count} ranks; give a "
            "number"
        )
    recipe_at = functools.partial(recipe.resolved, source.default_epochs, automatic)
    return recipe_at(batch=fastest(model, source, recipe_at, say))


def follow(loop: TrainingLoop) -> list[dict[str, Any]]:
    """Take every step of a training that is `prepared`, close it, and return its history. Raises as `fit`."""
    step, ranks = loop.step, loop.step.exchange.ranks
    with contextlib.closing(loop):
        statistics = ranks.agree(functools.partial(agree.statistics, step))
        arithmetic = precision.arithmetic(step.recipe.precision, step.feed.device)
        with arithmetic, statistics, stop_request() as request:
            for turn in loop.turns(request):
                if turn is not None:
                    step(*turn)
        return loop.history


def prepared(
    model: nn.Module,
    train: Feed | Images | Stream | Iterable[Any],
    test: Images | Stream | Iterable[Any] | None,
    val: Images | Stream | Iterable[Any] | None,
    recipe: ResolvedRecipe,
    bar: Progress,
    saver: Saver | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    ranks: Ranks = ALONE,
    replicas: int = 1,
) -> TrainingLoop:
    """Return the training that `fit` describes, its step planned; to be closed.

    replicas: how many networks, this among them, train at the same time and share the device's memory."""
    spare(model)
    device = next(model.parameters()).device
    held_out = {
        name: feed(images, device, name)
        for name, images in (("val", val), ("test", test))
        if images is not None
    }
    source = feed(train, device, "train")
    devices.check_recipe(recipe.bn_stats, device)
    bar.epochs, was_training = recipe.epochs, model.training
    ranks.agree(functools.partial(agree.check, ranks, source, recipe))
    training_mode(model, recipe.bn_stats)
    try:
        step = ranks.agree(
            lambda: TrainingStep(
                model, source, recipe, ranks, planner_of(model, source, recipe, replicas), bar.say
            )
        )
    except Unfit as unfit:
        why = str(unfit).splitlines()[0]
        raise UsageError(
            f"{source.name} has samples of shape {source.sample}, and {why}; make the network for these"
        ) from unfit
    if step.plan is not None:
        bar.say(f"plan      {step.plan}")
    return TrainingLoop(step, held_out, bar, was_training, saver, log)
