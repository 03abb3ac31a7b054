"""The hours that an experiment would take here, measured: one step of each line runs on this machine, on
random pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastbn.data.datasets import Loaded
from fastbn.data.feed import feed
from fastbn.data.images import Images
from fastbn.experiments.hours.estimate import SIZES
from fastbn.experiments.preset import Line, Preset, command
from fastbn.planning.precision import arithmetic
from fastbn.run.build import network_of
from fastbn.run.explain_devices import measured
from fastbn.run.resolve import resolve
from fastbn.settings.arguments import parse
from fastbn.training.planner import planner_of
from fastbn.training.step import TrainingStep

MOST = 128  # images of the batch whose step is taken; a larger one takes as many times as long


def hours(preset: Preset, quick: bool, say: Callable[[str], None]) -> float:
    """Return the hours of the whole experiment, all its seeds one after the other; `say` is told each line's.
    Lines whose data are words are left out."""
    seeds, total = 1 if quick else preset.seeds, 0.0
    for line in preset.cut(quick):
        seconds = _seconds(line)
        if seconds is None:
            say(f"{line.name}: not estimated, its data are words")
            continue
        total += seeds * seconds / 3600
        say(f"{line.name}: {said(seconds / 3600)} a seed")
    return total


def _seconds(line: Line) -> float | None:
    """Return the seconds of training that a line's run takes here, without its evaluations."""
    config = parse(command(line.settings))
    if config.dataset not in SIZES:
        return None
    if config.train == "none":
        return 0.0
    count, _, classes, side, epochs = SIZES[config.dataset]
    count = min(count, config.limit_train or count)
    batch = min(config.resolved(epochs).batch_size, count, MOST)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, classes, (batch,), generator=generator)
    images = Images(pixels, labels, [str(i) for i in range(classes)], default_epochs=epochs)
    run = resolve(config, Loaded(images, images, config.dataset, "pixels without meaning"))
    model = network_of(run, images)
    source = feed(images, torch.device(run.device))
    model.train()
    step = TrainingStep(model, source, run.recipe, planner=planner_of(model, source, run.recipe))
    try:
        with arithmetic(run.recipe.precision, source.device):
            seconds = measured(step, batch, repeats=2)
    finally:
        step.dissolve()
    return seconds / batch * count * run.recipe.epochs


def said(value: float) -> str:
    """Return hours as a person would say them: 12 minutes, 3.5 hours, 4 days."""
    if value < 1:
        return f"{60 * value:.0f} minutes"
    return f"{value:,.1f} hours" if value < 48 else f"{value / 24:,.0f} days"
