"""The check of replicas on this device: each has the bits that it has alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from bench.gpu.measure import DEVICE
from fastbn import FastBNOnlyResNet, Images, fit, fit_replicas, freeze, fuse


def pixels(count: int, size: int) -> Images:
    draw = torch.Generator().manual_seed(0)
    return Images(
        torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=draw),
        torch.arange(count) % 10,
    )


def as_alone(small: bool, kind: str) -> Iterator[tuple[str, float, float]]:
    """Networks of several seeds and learning rates by fit and by fit_replicas, over epochs with a ragged
    batch, evaluations between."""
    size, count, batch, epochs = (6, 10, 4, 1) if small else (32, 80, 32, 4)
    data, held_out, rates = (
        pixels(count, size),
        pixels(count // 2, size),
        [0.1, 0.3] if small else [0.1, 0.3, 0.01, 0.1],
    )
    models = [
        freeze(FastBNOnlyResNet(8 if small else 20, seed=k, engine="stock"), "bn").to(DEVICE)
        for k in range(len(rates))
    ]
    together = [fuse(copy.deepcopy(model), "triton") for model in models]
    settings = {"epochs": epochs, "batch_size": batch, "precision": kind, "progress": False}
    histories = fit_replicas(together, data, held_out, lr=rates, seed=[*range(len(rates))], **settings)
    for k, (model, other, history) in enumerate(zip(models, together, histories, strict=True)):
        found = fit(fuse(model, "triton"), data, held_out, lr=rates[k], seed=k, **settings)
        for what in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            differ = sum(line[what] != same[what] for line, same in zip(found, history, strict=True))
            yield f"epochs that differ, {what}, replica {k}", differ, 1
        state = other.state_dict()
        differ = sum((value != state[name]).sum().item() for name, value in model.state_dict().items())
        yield f"elements that differ, replica {k}", differ, 1
