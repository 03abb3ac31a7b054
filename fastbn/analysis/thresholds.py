"""The costs and gains of pruning by threshold: accuracy, parameters, FLOPs and the time of a forward,
measured beside the whole network."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastbn.analysis.pruning import prune
from fastbn.data.augment import batch
from fastbn.data.feed import feed
from fastbn.data.images import Images
from fastbn.engine.fuse import fuse
from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.trainable import count
from fastbn.training.affine_statistics import affine_norms
from fastbn.training.evaluation import evaluate

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@dataclasses.dataclass(frozen=True)
class Cut:
    """A network pruned at a threshold; the whole network where that is None."""

    threshold: float | None
    zeroed: float  # the share of all γ that are 0
    accuracy: float
    parameters: int
    flops: int  # of one image's forward: 2·M·C·C_in·KH·KW a convolution, and fc's
    seconds: float  # of an image's forward
    speed_up: float  # the whole network's seconds over these


def by_threshold(
    model: FastBNOnlyResNet,
    test: Images,
    thresholds: Sequence[float] = THRESHOLDS,
    batch_size: int = 128,
    rounds: int = 7,
) -> list[Cut]:
    """Return the whole network first, then pruned at each threshold: what they reach on the test set and
    take.

    All run stock in eval mode; their forwards of one batch take turns, the medians of `rounds` are kept, and
    of two memory layouts each has its faster one. Raises as `prune`."""
    whole = fuse(copy.deepcopy(model), "stock").eval()
    networks: list[nn.Module] = [whole, *(prune(model, t).eval() for t in thresholds)]
    device = next(model.parameters()).device
    test = test.to(device)
    images = batch(test, torch.arange(min(batch_size, len(test)), device=device), None)
    seconds = _seconds(networks, images, rounds)
    gamma = torch.cat([norm.weight.detach().abs() for _, norm in affine_norms(model)])
    cuts = []
    for threshold, network, took in zip([None, *thresholds], networks, seconds, strict=True):
        zeroed = (gamma < threshold) | (gamma == 0) if threshold is not None else gamma == 0
        accuracy = evaluate(network, feed(test, device)).mean("test")["test_accuracy"]
        share = zeroed.double().mean().item()
        cuts.append(
            Cut(
                threshold,
                share,
                accuracy,
                count(network)[1],
                flops(network, images[:1]),
                took,
                seconds[0] / took,
            )
        )
    return cuts


def arrays(cuts: Sequence[Cut]) -> dict[str, np.ndarray]:
    """Return the table by column; the whole network's threshold is 0."""
    columns = [field.name for field in dataclasses.fields(Cut)]
    return {
        name: np.array([0.0 if (v := getattr(cut, name)) is None else v for cut in cuts]) for name in columns
    }


def flops(model: nn.Module, images: Tensor) -> int:
    """Return the FLOPs of a forward of these images: a multiplication and an addition are two; taps on the
    padding count."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops()


def _seconds(networks: Sequence[nn.Module], images: Tensor, rounds: int) -> list[float]:
    """Return the seconds of an image's forward by each network."""
    times: dict[tuple[int, torch.memory_format], list[float]] = {}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for layout in LAYOUTS:
                laid = images.contiguous(memory_format=layout)
                for i, network in enumerate(networks):
                    network.to(memory_format=layout)  # type: ignore[call-overload]
                    _wait(images.device)
                    start = time.perf_counter()
                    network(laid)
                    _wait(images.device)
                    if turn:  # the first warms up
                        times.setdefault((i, layout), []).append(time.perf_counter() - start)
    return [
        min(statistics.median(times[i, layout]) for layout in LAYOUTS) / len(images)
        for i in range(len(networks))
    ]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
