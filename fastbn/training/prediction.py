"""The predictions of a trained network: `evaluate` and `predict`, as fastbn hands them on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbn.data.feed import feed
from fastbn.data.imagenet.stream import Stream
from fastbn.data.images import Images
from fastbn.errors import UsageError
from fastbn.planning.precision import arithmetic
from fastbn.training import evaluation
from fastbn.training.step import at_least_float32


def evaluate(
    model: nn.Module,
    data: Images | Stream | Iterable[Any],
    *,
    batch_size: int = 512,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> dict[str, float]:
    """Return a network's loss and accuracy, a fraction of 1, on labelled images: {"loss", "accuracy",
    "images"}, from 100 classes on "top5_accuracy" too. It is in evaluation mode meanwhile, and in fp32.

    data: fastbn.Images, or a DataLoader or any other iterable of (images, labels), as `fastbn.fit` takes
    them; it is brought to the model's device. loss: of logits (n, classes) and labels (n,), the mean over a
    batch.

        fastbn.evaluate(model, test)["accuracy"]

    Raises UsageError for data of another kind."""
    device = _device(model)
    with arithmetic("fp32", device):
        totals = evaluation.evaluate(model, feed(data, device, "data"), batch_size, loss=loss)
    figures = {name.removeprefix("data_"): value for name, value in totals.mean("data").items()}
    return figures | {"images": totals.images}


@torch.no_grad()
def predict(
    model: nn.Module, images: Tensor | Images | Stream | Iterable[Any], *, batch_size: int = 512
) -> Tensor:
    """Return the logits (N, classes) of images, float32 (float64 of a float64 network) on the CPU; their
    argmax(1) is the predicted class. The network is in evaluation mode meanwhile, and in fp32.

    images: a tensor (N, C, H, W) as the network takes it; or labelled images as of `evaluate`, whose labels
    are not looked at.

        classes = fastbn.predict(model, x).argmax(1)

    Raises UsageError for images of another kind."""
    device, logits = _device(model), list[Tensor]()
    if isinstance(images, Tensor):
        if images.ndim < 2 or not len(images) or not images.is_floating_point():
            said = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            raise UsageError(
                f"predict needs floating-point images (N, C, H, W) as the network takes them, got {said}; "
                "give uint8 images as fastbn.Images"
            )
        parts = (part.to(device) for part in images.split(batch_size))
    else:
        parts = (x for x, _ in feed(images, device, "images").held_out(batch_size))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with arithmetic("fp32", device):
            logits += [at_least_float32(model(x)).cpu() for x in parts]
    finally:
        for module, mode in modes:
            module.training = mode
    if not logits:
        raise UsageError("predict needs images, and was given none")
    return torch.cat(logits)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
