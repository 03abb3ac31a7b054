"""The learning rate of a step."""

from __future__ import annotations

import math

from fastbn.recipe import ResolvedRecipe


def learning_rate(recipe: ResolvedRecipe, epoch: int, step: int, steps: int) -> float:
    """Return the learning rate of step `step` of `steps` in epoch `epoch` (all from 0).

    multistep: a tenth at each milestone; cosine: half a period over all epochs; constant. Warm-up rises
    linearly, step by step, and multiplies."""
    done = epoch + step / steps
    lr = recipe.lr
    if recipe.schedule == "multistep":
        lr *= 0.1 ** sum(epoch >= milestone for milestone in recipe.milestones)
    elif recipe.schedule == "cosine":
        lr *= 0.5 * (1 + math.cos(math.pi * done / recipe.epochs))
    if epoch < recipe.warmup_epochs:
        lr *= (epoch * steps + step + 1) / (recipe.warmup_epochs * steps)
    return lr
