"""`fit`: trains one network."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from fastbn import devices
from fastbn.data.feed import feed
from fastbn.data.imagenet.stream import Stream
from fastbn.data.images import Images
from fastbn.engine import fused_forward
from fastbn.engine.onednn_workaround import spare
from fastbn.errors import UsageError
from fastbn.graph.regions import Unfit
from fastbn.planning import precision
from fastbn.recipe import Recipe
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
    course = prepared(model, train, test, val, recipe or Recipe(**settings), bar, saver, log, ranks)
    step, recipe = course.step, course.recipe
    with contextlib.closing(course):
        statistics = ranks.agree(functools.partial(agree.statistics, step, recipe))
        with precision.arithmetic(recipe.precision, step.feed.device), statistics, stop_request() as request:
            for turn in course.turns(request):
                if turn is not None:
                    step(*turn)
        return course.history


def prepared(
    model: nn.Module,
    train: Images | Stream | Iterable[Any],
    test: Images | Stream | Iterable[Any] | None,
    val: Images | Stream | Iterable[Any] | None,
    recipe: Recipe,
    bar: Progress,
    saver: Saver | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    ranks: Ranks = ALONE,
    replicas: int = 1,
) -> TrainingLoop:
    """The course of what `fit` describes, nothing of the recipe left open and its step planned; to be closed.
    replicas: how many networks, this among them, train at the same time and share the device's memory."""
    spare(model)
    device, fused = next(model.parameters()).device, fused_forward(model)
    held_out = {
        name: feed(images, device, name)
        for name, images in (("val", val), ("test", test))
        if images is not None
    }
    source = feed(train, device, "train")
    automatic = precision.automatic(fused.engine if fused else "stock", device)
    recipe = recipe.resolved(source.default_epochs, automatic)
    devices.check_recipe(recipe.bn_stats, device)
    assert recipe.epochs is not None
    bar.epochs, was_training = recipe.epochs, model.training
    ranks.agree(functools.partial(agree.check, ranks, source, recipe))
    if recipe.batch_size == "auto":
        recipe = recipe.with_batch(fastest(model, source, recipe, bar.say))
    training_mode(model, recipe)
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
    return TrainingLoop(step, recipe, held_out, bar, was_training, saver, log)
