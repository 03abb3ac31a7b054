"""The learning rate of a step."""

from __future__ import annotations

import math

from fastbn.recipe import Recipe


def learning_rate(recipe: Recipe, epoch: int, step: int, steps: int) -> float:
    """For step `step` of `steps` in epoch `epoch` (all from 0) of a resolved recipe.

    multistep: a tenth at each milestone; cosine: half a period over all epochs; constant. Warm-up rises
    linearly, step by step, and multiplies."""
    assert recipe.lr is not None and recipe.epochs is not None and recipe.milestones is not None
    done = epoch + step / steps
    lr = recipe.lr
    if recipe.schedule == "multistep":
        lr *= 0.1 ** sum(epoch >= milestone for milestone in recipe.milestones)
    elif recipe.schedule == "cosine":
        lr *= 0.5 * (1 + math.cos(math.pi * done / recipe.epochs))
    warmup = recipe.warmup_epochs or 0
    if epoch < warmup:
        lr *= (epoch * steps + step + 1) / (warmup * steps)
    return lr
