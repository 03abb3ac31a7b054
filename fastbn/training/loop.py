"""The loop: epochs of steps, an evaluation after each, and everything saved that a resumption needs."""

from __future__ import annotations

import time
from typing import Any

from torch import nn

from fastbn.config import Recipe
from fastbn.data.feed import Feed, feed
from fastbn.data.images import Images
from fastbn.engine import fused_forward
from fastbn.errors import Diverged, Stopped, UsageError
from fastbn.training import machine, precision
from fastbn.training.evaluation import evaluate
from fastbn.training.progress import Progress
from fastbn.training.saving import Position, Saver
from fastbn.training.schedule import learning_rate
from fastbn.training.signals import StopRequest, stop_request
from fastbn.training.step import Step, Totals


def fit(
    model: nn.Module,
    train: Images,
    test: Images | None = None,
    val: Images | None = None,
    *,
    recipe: Recipe | None = None,
    saver: Saver | None = None,
    progress: bool = True,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Trains what requires grad, and returns one dict an epoch: epoch, step, lr, train_loss, train_accuracy, test_loss,
    test_accuracy (val_… too where given), images_per_second, seconds, evaluation_seconds, peak_memory_bytes, energy_joules.

    model: on the device where it should train; the images are brought there. Accuracies are fractions of 1.
    settings: the fields of fastbn.config.Recipe (epochs, batch_size, optimizer, lr, seed, …); or a `recipe` made of them.
    saver: keeps a run's folder; `python -m fastbn.train` gives one.

        history = fastbn.fit(model, train, test, epochs=15, batch_size=64)

    Raises UsageError where nothing trains or a setting can't be, MachineError for a precision that the device lacks,
    Diverged when a loss or gradient is not finite (the parameters are then as after the last good step).
    """
    if recipe is not None and settings:
        raise UsageError(f"give fit a recipe or settings, not both: got recipe and {', '.join(settings)}")
    device, fused = next(model.parameters()).device, fused_forward(model)
    held_out = {name: feed(images, device, name) for name, images in (("val", val), ("test", test)) if images is not None}
    source = feed(train, device, "train")
    automatic = precision.automatic(fused.engine if fused else "stock", device)
    recipe = (recipe or Recipe(**settings)).resolved(source.default_epochs, automatic)
    assert recipe.epochs is not None
    step = Step(model, source, recipe)
    bar = Progress(recipe.epochs, progress)
    was_training = model.training
    try:
        with precision.arithmetic(recipe.precision, device), stop_request() as request:
            position = saver.start(step) if saver else Position(0, 0, Totals.zero(device))
            history = list(saver.history) if saver else []
            energy = machine.EnergyMeter(device)
            while position.epoch < recipe.epochs:
                line = _epoch(step, recipe, position, held_out, bar, request, saver)
                line["energy_joules"] = energy.joules()
                history.append(line)
                position = Position(position.epoch + 1, 0, Totals.zero(device))
                if saver:
                    saver.epoch(step, position, line)
                bar.finish(line)
        return history
    finally:
        bar.close()
        step.flat.dissolve()
        model.train(was_training)


def _epoch(
    step: Step, recipe: Recipe, position: Position, held_out: dict[str, Feed], bar: Progress, request: StopRequest, saver: Saver | None
) -> dict[str, Any]:
    """Trains and evaluates one epoch from `position` on, which it moves; returns its metrics."""
    source, totals = step.feed, position.totals
    steps = -(-len(source) // recipe.batch_size)
    source.begin(recipe.seed, position.epoch)
    _training_mode(step.model, recipe)
    already = totals.images
    bar.start(position.epoch, len(source), already)
    lr = learning_rate(recipe, position.epoch, max(position.step - 1, 0), steps)
    start = time.perf_counter()
    for inputs in source.batches(recipe.batch_size, position.step):
        lr = learning_rate(recipe, position.epoch, position.step, steps)
        step(inputs, lr, totals)
        position.step += 1
        bar.advance(len(inputs[0]))
        if request.signal is not None:
            _stop(step, position, request, saver)
    finite = bool(totals.finite)  # the device has caught up when this is known
    seconds = time.perf_counter() - start
    _check(finite, position)
    bar.testing()
    line: dict[str, Any] = {"epoch": position.epoch, "step": (position.epoch + 1) * steps, "lr": lr} | totals.mean("train")
    start = time.perf_counter()
    for name, held in held_out.items():

        def pause(n: int) -> None:
            if request.signal is not None:
                _stop(step, position, request, saver)

        line |= evaluate(step.model, held, pause=pause).mean(name)
    return line | {
        "images_per_second": (totals.images - already) / seconds if seconds > 0 and totals.images > already else 0.0,
        "seconds": seconds,
        "evaluation_seconds": time.perf_counter() - start,
        "peak_memory_bytes": machine.peak_memory_bytes(source.device),
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


def _stop(step: Step, position: Position, request: StopRequest, saver: Saver | None) -> None:
    """Saves in the middle of an epoch, and ends."""
    _check(bool(position.totals.finite), position)
    if saver:
        saver.save(step, position)
    assert request.signal is not None
    raise Stopped(request.signal)
