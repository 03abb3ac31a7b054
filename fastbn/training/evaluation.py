"""Loss and accuracy over a data set."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from fastbn.data.feed import Feed
from fastbn.training.step import Totals


@torch.no_grad()
def evaluate(model: nn.Module, samples: Feed, batch_size: int = 512, pause: Callable[[int], None] = lambda n: None) -> Totals:
    """The totals of a model in eval mode over samples on its device; the modules' own modes are as before afterwards.

    `pause` is called after each batch with its size: a place to show progress, and to stop by raising.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        totals = Totals.zero(samples.device)
        for x, labels in samples.held_out(batch_size):
            logits = model(x).float()
            totals.add(logits, labels, F.cross_entropy(logits, labels))
            totals.images += len(labels)
            pause(len(labels))
        return totals
    finally:
        for module, mode in modes:
            module.training = mode
