"""--batch-size auto: the smallest batch whose images/s are within 5% of the best of those that fit,
measured on a copy of the network."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator

from torch import nn

from fastbn.data.feed import Feed, Inputs
from fastbn.engine.onednn_workaround import spare
from fastbn.errors import MachineError
from fastbn.machine import devices
from fastbn.planning import precision
from fastbn.recipe import ResolvedRecipe
from fastbn.training.planner import planner_of
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals

SMALLEST, LARGEST = 32, 2**14
WITHIN = 0.95
UNTIMED = 2  # steps: the first compiles, the second is captured
SECONDS = 0.5  # of timed steps
PATIENCE = 2  # sizes in a row that are no faster than the best: the rest will not be


def fastest(
    model: nn.Module,
    source: Feed,
    recipe_at: Callable[..., ResolvedRecipe],
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Return the batch size. The model and its running statistics stay as they are.

    recipe_at: returns the recipe for the batch size given as `batch`, as `Recipe.resolved` does. say: is told
    each measurement. Raises MachineError where not even the smallest fits."""
    measured: dict[int, float] = {}
    size, since = SMALLEST, 0
    while size <= LARGEST and (size == SMALLEST or size <= len(source)) and since < PATIENCE:
        try:
            measured[size] = _images_per_second(copy.deepcopy(model), source, recipe_at(batch=size))
        except MachineError:
            if not measured:
                raise
            break
        since = 0 if measured[size] == max(measured.values()) else since + 1
        size *= 2
    chosen = choose(measured)
    rates = ", ".join(f"{n:,}: {rate:,.0f}" for n, rate in measured.items())
    say(f"batch     {chosen:,}: the smallest within {1 - WITHIN:.0%} of the best images/s ({rates})")
    return chosen


def choose(rates: dict[int, float]) -> int:
    """Return the smallest batch of those measured whose rate is within 5% of the best."""
    best = max(rates.values())
    return min(n for n, rate in rates.items() if rate >= WITHIN * best)


def _images_per_second(model: nn.Module, source: Feed, recipe: ResolvedRecipe) -> float:
    spare(model)
    model.train()
    step, totals = (
        TrainingStep(model, source, recipe, planner=planner_of(model, source, recipe)),
        Totals.zero(source.device),
    )
    batches, images = _whole(source, recipe), 0
    with precision.arithmetic(recipe.precision, source.device):
        for _ in range(UNTIMED):
            step(next(batches), 0.0, totals)
        devices.carry_out(source.device, wait=True)
        start = time.perf_counter()
        while (seconds := time.perf_counter() - start) < SECONDS:
            step(next(batches), 0.0, totals)
            images += recipe.batch_size
            devices.carry_out(source.device, wait=True)
    return images / seconds


def _whole(source: Feed, recipe: ResolvedRecipe) -> Iterator[Inputs]:
    """Yield whole batches without end."""
    for epoch in itertools.count():
        source.begin(recipe.seed, epoch)
        yield from (
            inputs for inputs in source.batches(recipe.batch_size) if len(inputs[0]) == recipe.batch_size
        )
