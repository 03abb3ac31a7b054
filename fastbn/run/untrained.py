"""The accuracy of a network with nothing trained: `--train none`, the control of every experiment."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import nn

from fastbn.data.feed import feed
from fastbn.errors import Diverged
from fastbn.machine import devices
from fastbn.planning import precision
from fastbn.recipe import ResolvedRecipe
from fastbn.training import affine_statistics
from fastbn.training.evaluation import evaluate
from fastbn.training.totals import StepResult, Totals


def measure(model: nn.Module, train: object, test: object, recipe: ResolvedRecipe) -> list[dict[str, Any]]:
    """Make one pass over the training set in training mode, without a gradient, for BatchNorm's running
    statistics; then the test. Returns one line of metrics like those of `fit`'s epochs. Raises Diverged where
    the loss is not finite."""
    device = next(model.parameters()).device
    source, held = feed(train, device, "train"), feed(test, device, "test")
    totals, was_training, start = Totals.zero(device), model.training, time.perf_counter()
    with torch.no_grad(), precision.arithmetic(recipe.precision, device):
        model.train()
        source.begin(recipe.seed, 0)
        for inputs in source.batches(recipe.batch_size):
            x, labels = source.load(*inputs)
            logits = model(x).float()
            totals.add(StepResult.of(logits, labels, nn.functional.cross_entropy(logits, labels)))
            totals.images += len(labels)
            devices.carry_out(device)
        line: dict[str, Any] = {"epoch": 0, "step": 0, "lr": 0.0} | totals.mean("train")
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        line |= evaluate(model, held).mean("test")
    model.train(was_training)
    if not all(math.isfinite(line[name]) for name in ("train_loss", "test_loss")):
        raise Diverged(
            "the loss of the untrained network is not finite; start from other weights, or another "
            "--gamma-init"
        )
    return [
        line
        | {
            "images_per_second": totals.images / seconds,
            "seconds": seconds,
            "evaluation_seconds": time.perf_counter() - start,
            "peak_memory_bytes": devices.peak_memory_bytes(device),
            "energy_joules": None,
            "norms": affine_statistics.statistics(model),
        }
    ]
