"""Loss and accuracy over a data set."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbn.data.feed import Feed
from fastbn.machine import devices
from fastbn.training.step import at_least_float32
from fastbn.training.totals import StepResult, Totals

MANY = 100  # classes, from which on the five likeliest are counted too


@torch.no_grad()
def evaluate(
    model: nn.Module,
    samples: Feed,
    batch_size: int = 512,
    pause: Callable[[int], None] = lambda n: None,
    share: tuple[int, int] = (0, 1),
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Totals:
    """Return the totals of a model in eval mode over samples on its device, or over one rank's share of
    them: whole batches, so that no image meets others than in one process. The modules' own modes are as
    before afterwards.

    From 100 classes on `top5` is among them. `pause` is called after each batch with its size: a place to
    show progress, and to stop by raising. loss: the mean over a batch of logits and labels."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        totals = Totals.zero(samples.device)
        for x, labels in samples.held_out(batch_size, share):
            logits = at_least_float32(model(x))
            totals.add(StepResult.of(logits, labels, loss(logits, labels)))
            if logits.shape[1] >= MANY:
                near = (logits.topk(5).indices == labels[:, None]).sum()
                totals.top5 = near if totals.top5 is None else totals.top5 + near
            totals.images += len(labels)
            devices.carry_out(samples.device)
            pause(len(labels))
        return totals
    finally:
        for module, mode in modes:
            module.training = mode
