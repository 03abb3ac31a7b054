"""The loop: epochs of steps, an evaluation after each, and everything saved that a resumption needs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from fastbn.config import Recipe
from fastbn.data.feed import Feed, feed
from fastbn.data.images import Images
from fastbn.data.stream.stream import Stream
from fastbn.engine import fused_forward
from fastbn.errors import Diverged, Stopped, UsageError
from fastbn.training import machine, norms, precision
from fastbn.training.batchsize import fastest
from fastbn.training.distributed import sharing
from fastbn.training.distributed.ranks import Ranks, joined
from fastbn.training.evaluation import evaluate
from fastbn.training.plan import planner_of
from fastbn.training.progress import Progress
from fastbn.training.saving import Position, Saver
from fastbn.training.schedule import learning_rate
from fastbn.training.signals import StopRequest, stop_request
from fastbn.training.step import Step, Totals


def fit(
    model: nn.Module,
    train: Images | Stream,
    test: Images | Stream | None = None,
    val: Images | Stream | None = None,
    *,
    recipe: Recipe | None = None,
    saver: Saver | None = None,
    ranks: Ranks | None = None,
    progress: bool = True,
    log: Callable[[dict[str, Any]], None] | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Trains what requires grad, and returns one dict an epoch: epoch, step, lr, train_loss, train_accuracy, test_loss,
    test_accuracy (val_… too where given; from 100 classes on test_top5_accuracy), images_per_second, seconds, evaluation_seconds,
    peak_memory_bytes, planned_memory_bytes, energy_joules, and norms: γ and β in a few numbers a layer.

    model: on the device where it should train; the images are brought there. Accuracies are fractions of 1.
    settings: the fields of fastbn.config.Recipe (epochs, batch_size, optimizer, lr, seed, …); or a `recipe` made of them.
    saver: keeps a run's folder; `python -m fastbn.train` gives one, to the first rank alone.
    ranks: the processes that train together, each with its part of every batch; those of the process group that torch.distributed
    has, if it has one. The first rank's parameters are everybody's, and it alone shows progress.
    log: is called with each epoch's dict.

        history = fastbn.fit(model, train, test, epochs=15, batch_size=64)

    Raises UsageError where nothing trains or a setting can't be, MachineError for a precision that the device lacks or a batch that its
    memory does not hold, Diverged when a loss or gradient is not finite (the parameters are then as after the last good step).
    """
    if recipe is not None and settings:
        raise UsageError(f"give fit a recipe or settings, not both: got recipe and {', '.join(settings)}")
    device, fused = next(model.parameters()).device, fused_forward(model)
    held_out = {name: feed(images, device, name) for name, images in (("val", val), ("test", test)) if images is not None}
    source = feed(train, device, "train")
    automatic = precision.automatic(fused.engine if fused else "stock", device)
    recipe = (recipe or Recipe(**settings)).resolved(source.default_epochs, automatic)
    machine.check_recipe(recipe.bn_stats, device)
    assert recipe.epochs is not None
    ranks = joined(device) if ranks is None else ranks
    bar = Progress(recipe.epochs, progress and ranks.first)
    was_training = model.training
    ranks.agree(functools.partial(sharing.check, ranks, source, recipe))
    if recipe.batch_size == "auto":
        recipe = recipe.with_batch(fastest(model, source, recipe, bar.say))
    assert recipe.epochs is not None
    _training_mode(model, recipe)

    def prepared(recipe: Recipe) -> Step:
        return Step(model, source, recipe, ranks, planner_of(model, source, recipe), bar.say)

    step = ranks.agree(functools.partial(prepared, recipe))
    if step.plan is not None:
        bar.say(f"plan      {step.plan}")
    try:
        statistics = ranks.agree(functools.partial(sharing.statistics, step, recipe))
        with precision.arithmetic(recipe.precision, device), statistics, stop_request() as request:
            position, history = sharing.start(step, saver)
            energy = machine.EnergyMeter(device)
            while position.epoch < recipe.epochs:
                line = _epoch(step, recipe, position, held_out, bar, request, saver)
                line |= {"energy_joules": ranks.total(energy.joules(), device), "norms": norms.statistics(model)}
                history.append(line)
                position = Position(position.epoch + 1, 0, Totals.zero(device))
                if saver:
                    saver.epoch(step, position, line)
                if log:
                    log(line)
                bar.finish(line)
        return history
    finally:
        bar.close()
        step.dissolve()
        model.train(was_training)


def _epoch(
    step: Step, recipe: Recipe, position: Position, held_out: dict[str, Feed], bar: Progress, request: StopRequest, saver: Saver | None
) -> dict[str, Any]:
    """Trains and evaluates one epoch from `position` on, which it moves; returns its metrics."""
    source, totals = step.feed, position.totals
    steps = -(-len(source) // recipe.batch)
    source.begin(recipe.seed, position.epoch)
    _training_mode(step.model, recipe)
    already = totals.images
    bar.start(position.epoch, len(source), already)
    lr = learning_rate(recipe, position.epoch, max(position.step - 1, 0), steps)
    start = time.perf_counter()
    ranks = step.exchange.ranks
    for inputs in source.batches(recipe.batch, position.step, ranks.share):
        lr = learning_rate(recipe, position.epoch, position.step, steps)
        images = min(recipe.batch, len(source) - position.step * recipe.batch)
        step(inputs, lr, totals, images, request.signal)
        position.step += 1
        bar.advance(images)
        heard = request.signal if ranks.count == 1 else step.exchange.stopping()
        if heard is not None:
            _stop(step, position, heard, saver, moved=True)
    step.exchange.finish()
    finite = bool(totals.finite)  # the device has caught up when this is known
    seconds = time.perf_counter() - start
    _check(finite, position)
    sharing.average(step)
    bar.testing()
    line: dict[str, Any] = {"epoch": position.epoch, "step": (position.epoch + 1) * steps, "lr": lr} | totals.mean("train")
    start = time.perf_counter()
    for name, held in held_out.items():

        def pause(n: int) -> None:
            if request.signal is not None and ranks.count == 1:
                _stop(step, position, request.signal, saver, moved=False)

        found = evaluate(step.model, held, pause=pause, share=ranks.share)
        heard = step.exchange.evaluated(found, request.signal)
        if heard is not None:
            _stop(step, position, heard, saver, moved=False)
        line |= found.mean(name)
    return line | {
        "images_per_second": (totals.images - already) / seconds if seconds > 0 and totals.images > already else 0.0,
        "seconds": seconds,
        "evaluation_seconds": time.perf_counter() - start,
        "peak_memory_bytes": machine.peak_memory_bytes(source.device),
        "planned_memory_bytes": step.plan.memory.peak if step.plan else None,
    }


def _training_mode(model: nn.Module, recipe: Recipe) -> None:
    model.train()
    if recipe.bn_stats == "frozen":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _check(finite: bool, position: Position) -> None:
    if not finite:
        raise Diverged(
            f"the loss or a gradient stopped being finite in epoch {position.epoch + 1}; lower --lr or add --warmup-epochs "
            "(a checkpoint of an earlier epoch is intact)"
        )


def _stop(step: Step, position: Position, heard: int, saver: Saver | None, moved: bool) -> None:
    """Saves in the middle of an epoch, and ends. moved: whether there were steps since the ranks' running statistics were averaged."""
    step.exchange.finish()
    _check(bool(position.totals.finite), position)
    if moved:
        sharing.average(step)
    if saver:
        saver.save(step, position)
    raise Stopped(heard)
