"""Loss and accuracy over a data set."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from fastbn.data.augment import batch
from fastbn.data.images import Images
from fastbn.training.step import Totals


@torch.no_grad()
def evaluate(model: nn.Module, images: Images, batch_size: int = 512, pause: Callable[[int], None] = lambda n: None) -> Totals:
    """The totals of a model in eval mode over images on its device; the modules' own modes are as before afterwards.

    `pause` is called after each batch with its size: a place to show progress, and to stop by raising.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        totals = Totals.zero(images.device)
        for start in range(0, len(images), batch_size):
            indices = torch.arange(start, min(start + batch_size, len(images)), device=images.device)
            labels = images.labels[indices]
            logits = model(batch(images, indices, None)).float()
            totals.add(logits, labels, F.cross_entropy(logits, labels))
            totals.images += len(indices)
            pause(len(indices))
        return totals
    finally:
        for module, mode in modes:
            module.training = mode
