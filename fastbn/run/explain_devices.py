"""--explain --devices: what so many devices would send each other in a step, and how long it would take."""

from __future__ import annotations

import statistics
import time

from torch import nn

from fastbn.planning import precision
from fastbn.planning.links import ASSUMED, table
from fastbn.recipe import ResolvedRecipe
from fastbn.trainable import count
from fastbn.training.distributed.exchange import message_bytes
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals


def lines(step: TrainingStep, recipe: ResolvedRecipe, devices: int, seconds: float | None) -> list[str]:
    """Return what `--explain --devices` says: each device takes a batch of its own in the step's seconds,
    given or, where they are None, measured here."""
    how = "as given"
    if seconds is None:
        with precision.arithmetic(recipe.precision, step.feed.device):
            seconds = measured(step, recipe.batch_size)
        how = "as measured here"
    batch = min(recipe.batch_size, len(step.feed))
    first = (
        f"many      {batch} images and {seconds * 1e3:,.1f} ms a device and step, {how}; assumed: "
        f"{ASSUMED}, nothing hidden"
    )
    trained, total = count(step.model)
    channels = [m.num_features for m in step.model.modules() if isinstance(m, nn.BatchNorm2d)]
    return [first, *table(message_bytes(trained), total, channels, seconds, devices, recipe.sync_bn)]


def measured(step: TrainingStep, batch_size: int, repeats: int = 3) -> float:
    """Return the seconds of a step here: the median, after one that packs, compiles and allocates. The
    model is trained by them."""
    seconds = []
    step.model.train()
    step.feed.begin(0, 0)
    for _ in range(repeats + 1):
        totals = Totals.zero(step.feed.device)
        start = time.perf_counter()
        step(next(step.feed.batches(batch_size)), 0.0, totals)
        bool(totals.finite)  # the device has caught up when this is known
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
