"""The planner of a training step: what the model, the feed and the recipe say, put to fastbn.planning."""

from __future__ import annotations

from torch import nn

from fastbn.data.feed import Feed
from fastbn.engine import fused_forward, select
from fastbn.planning.data_sheets import GB, free_memory
from fastbn.planning.plan import Planner
from fastbn.planning.precision import storage
from fastbn.planning.step_memory import NetworkMemory
from fastbn.recipe import ResolvedRecipe


def planner_of(model: nn.Module, feed: Feed, recipe: ResolvedRecipe, replicas: int = 1) -> Planner | None:
    """Return the planner of a resolved recipe's steps on the device where model and feed are, in what
    memory is free there or the recipe grants. None where nothing is to be decided: the model runs stock,
    reads no images, or is XLA's to plan. Of so many replicas on CUDA, whose steps overlap, each has an
    equal part of what is free. The model is read in the modes it is in."""
    fused = fused_forward(model)
    if fused is None or len(feed.sample) != 3 or feed.device.type == "xla":
        return None
    device, dtype = next(model.parameters()).device, storage(recipe.precision)[0]
    if fused.engine == "auto" and select.stock_instead(device, dtype):
        return None
    traced = fused.latest(device, dtype).traced
    if traced is None or traced.written:
        return None
    network = NetworkMemory.of(model, fused, dtype)
    there = network.stored_bytes + feed.nbytes
    free = free_memory(feed.device) // (replicas if feed.device.type == "cuda" else 1)
    memory = int(recipe.memory * GB) if recipe.memory is not None else free + there
    return Planner(network, feed.sample, recipe.precision, memory, recipe.optimizer, feed.nbytes)
