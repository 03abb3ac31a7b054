"""`fit`: trains one network."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbn.choices import OPTIMIZERS, unknown_setting
from fastbn.data.feed import Feed, feed
from fastbn.data.imagenet.stream import Stream
from fastbn.data.images import Images
from fastbn.engine import fused_forward
from fastbn.engine.onednn_workaround import spare
from fastbn.errors import UsageError
from fastbn.graph.regions import Unfit
from fastbn.machine import devices
from fastbn.planning.precision import arithmetic, automatic
from fastbn.recipe import Recipe, ResolvedRecipe
from fastbn.training.batch_size import fastest
from fastbn.training.distributed import agree
from fastbn.training.distributed.ranks import ALONE, Ranks, joined
from fastbn.training.loop import Callback, TrainingLoop, training_mode
from fastbn.training.planner import planner_of
from fastbn.training.progress import Progress
from fastbn.training.saving import Saver, kept
from fastbn.training.signals import stop_request
from fastbn.training.state.custom import OWN, Custom, Loss, MakeOptimizer, callbacks_of, optimizer_of
from fastbn.training.step import TrainingStep


def fit(
    model: nn.Module,
    train: Images | Stream | Iterable[Any],
    test: Images | Stream | Iterable[Any] | None = None,
    val: Images | Stream | Iterable[Any] | None = None,
    *,
    epochs: int | None = None,
    batch_size: int | str | None = None,
    bn_batch: int | None = None,
    optimizer: str | torch.optim.Optimizer | MakeOptimizer = "sgd",
    lr: float | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    schedule: str = "multistep",
    milestones: tuple[int, ...] | None = None,
    warmup_epochs: int | None = None,
    bn_stats: str = "batch",
    sync_bn: bool = False,
    precision: str = "auto",
    memory: float | None = None,
    seed: int = 0,
    loss: Loss = F.cross_entropy,
    augment: Callable[[Tensor], Tensor] | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    recipe: Recipe | None = None,
    saver: Saver | None = None,
    ranks: Ranks | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    **unknown: Any,
) -> list[dict[str, Any]]:
    """Train what requires grad, and return one dict per epoch: epoch, step, lr, train_loss, train_accuracy,
    test_loss, test_accuracy (val_… too where given; from 100 classes on test_top5_accuracy),
    images_per_second, seconds, evaluation_seconds, peak_memory_bytes, planned_memory_bytes, energy_joules,
    and norms: γ and β in a few numbers per layer. Accuracies are fractions of 1.

    model: on the device where it should train; the images are brought there.
    train, test, val: fastbn.Images; or a DataLoader, or any other iterable of (images, labels), gone through
    once per epoch and cut to batch_size (fastbn.data.batches.Batches): its order is its own, so that one
    process alone can train on it.
    epochs … seed: the recipe, as of `python -m fastbn.train`, whose --help describes each; None: 160 epochs,
    a batch of 128, lr 0.1 (adam: 0.001), milestones at half and three quarters, or what the data set has of
    its own. batch_size "auto": the smallest of the fastest, measured. precision "auto": mixed on CUDA, fp32
    on a CPU. memory: GB that the training may take.
    optimizer: "sgd" or "adam"; or an optimizer of torch.optim's kind over the parameters that train, or what
    makes one of a list of them (torch.optim.AdamW, functools.partial(torch.optim.AdamW, weight_decay=0.01)).
    Its learning rates follow `schedule`; its other settings are its own.
    loss: of logits (n, classes) and labels (n,) int64, the mean over the batch.
    augment: takes a training batch (n, C, H, W) on its device, after the data set's own augmentation.
    callbacks: each is called as callback(model, metrics) after every epoch; True ends the training.
    out: a folder that keeps metrics and a checkpoint after every epoch, as `python -m fastbn.train` does, of
    fastbn's own networks. resume: go on with the run in `out`, bit for bit, or begin it.
    progress: a bar on a terminal, else a line per epoch, on stderr.
    recipe: a fastbn.recipe.Recipe in place of these settings. saver: keeps a run in another way. ranks: the
    processes that train together; those of the process group that torch.distributed has, if it has one. The
    first rank's parameters are everybody's, and it alone shows progress. log: is called with each epoch's
    dict. Any other name is refused, with the nearest.

        history = fastbn.fit(model, train, test, epochs=15, batch_size=64)

    A loss, augment or optimizer of one's own is taken the plain way, which a line says: the step is no CUDA
    graph, and such an optimizer updates each parameter, not one vector.

    Raises UsageError where nothing trains or a setting can't be, MachineError for a precision that the device
    lacks or a batch that its memory does not hold, Diverged when a loss or gradient is not finite (the
    parameters are then as after the last good step)."""
    settings = locals()
    if unknown:
        raise unknown_setting("fit", unknown, [name for name in settings if name != "unknown"])
    asked, custom = asked_of(
        {field.name: settings[field.name] for field in dataclasses.fields(Recipe)}, model
    )
    if recipe is not None and asked != Recipe():
        given = [one.name for one in dataclasses.fields(Recipe) if getattr(asked, one.name) != one.default]
        raise UsageError(f"give fit a recipe or settings, not both: got recipe and {', '.join(given)}")
    custom = dataclasses.replace(custom, loss=loss, augment=augment)
    ranks = joined(next(model.parameters()).device) if ranks is None else ranks
    bar = Progress(0, progress and ranks.first)
    source, held_out = feeds(model, train, test, val)
    resolved = ranks.agree(lambda: resolve(recipe or asked, model, source, ranks, bar.say))
    if custom.names():
        bar.say(custom.said())
    with kept(out, resume, model, source, held_out.get("test"), resolved, custom, ranks, saver) as keeper:
        told = callbacks_of(callbacks)
        loop = prepared(
            model, source, held_out, resolved, bar, keeper, log, ranks, custom=custom, callbacks=told
        )
        return follow(loop)


def asked_of(settings: dict[str, Any], model: nn.Module) -> tuple[Recipe, Custom]:
    """Return the recipe that fit's settings ask for, and the optimizer where that is none of fastbn's."""
    given = settings["optimizer"]
    if isinstance(given, str):
        return Recipe(**settings), OWN
    if not callable(given) and not isinstance(given, torch.optim.Optimizer):
        names = ", ".join(OPTIMIZERS)
        raise UsageError(f"optimizer must be {names}, a torch.optim.Optimizer or make one, got {given!r}")
    for name, usual in (("momentum", 0.9), ("nesterov", False), ("weight_decay", 1e-4)):
        if settings[name] != usual:
            raise UsageError(f"{name} is the optimizer's own where fit is given one; give it to that")
    made = optimizer_of(model, given, settings["lr"])
    completed = settings | {
        "optimizer": "adam",
        "lr": float(made.param_groups[0]["lr"]),
    }  # which plans as much memory
    return Recipe(**completed), Custom(optimizer=made)


def feeds(
    model: nn.Module,
    train: Images | Stream | Iterable[Any],
    test: Images | Stream | Iterable[Any] | None,
    val: Images | Stream | Iterable[Any] | None,
) -> tuple[Feed, dict[str, Feed]]:
    """Return what `fit` was given as feeds on the model's device: to train on, and those held out by name.
    Raises UsageError for what is no set of images."""
    device = next(model.parameters()).device
    held_out = {
        name: feed(images, device, name)
        for name, images in (("val", val), ("test", test))
        if images is not None
    }
    return feed(train, device, "train"), held_out


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
    usual = automatic(fused.engine if fused else "stock", source.device)
    if recipe.batch_size != "auto":
        return recipe.resolved(source.default_epochs, usual)
    if ranks.count > 1:
        raise UsageError(
            f"--batch-size auto is measured by one process, and this is one of {ranks.count} ranks; give a "
            "number"
        )
    recipe_at = functools.partial(recipe.resolved, source.default_epochs, usual)
    return recipe_at(batch=fastest(model, source, recipe_at, say))


def follow(loop: TrainingLoop) -> list[dict[str, Any]]:
    """Take every step of a training that is `prepared`, close it, and return its history. Raises as `fit`."""
    step, ranks = loop.step, loop.step.exchange.ranks
    with contextlib.closing(loop):
        statistics = ranks.agree(functools.partial(agree.statistics, step))
        exact = arithmetic(step.recipe.precision, step.feed.device)
        with exact, statistics, stop_request() as request:
            for turn in loop.turns(request):
                if turn is not None:
                    step(*turn)
        return loop.history


def prepared(
    model: nn.Module,
    source: Feed,
    held_out: dict[str, Feed],
    recipe: ResolvedRecipe,
    bar: Progress,
    saver: Saver | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    ranks: Ranks = ALONE,
    replicas: int = 1,
    custom: Custom = OWN,
    callbacks: Sequence[Callback] = (),
) -> TrainingLoop:
    """Return the training that `fit` describes on `feeds`, its step planned; to be closed.

    replicas: how many networks, this among them, train at the same time and share the device's memory."""
    spare(model)
    devices.check_recipe(recipe.bn_stats, source.device)
    bar.epochs, was_training = recipe.epochs, model.training
    ranks.agree(functools.partial(agree.check, ranks, source, recipe))
    training_mode(model, recipe.bn_stats)
    try:
        step = ranks.agree(
            lambda: TrainingStep(
                model, source, recipe, ranks, planner_of(model, source, recipe, replicas), bar.say, custom
            )
        )
    except Unfit as unfit:
        why = str(unfit).splitlines()[0]
        raise UsageError(
            f"{source.name} has samples of shape {source.sample}, and {why}; make the network for these"
        ) from unfit
    if step.plan is not None:
        bar.say(f"plan      {step.plan}")
    return TrainingLoop(step, held_out, bar, was_training, saver, log, callbacks)
