"""The checks of fit's own step and of replicas on this device: each has the bits of the plain step, alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from bench.gpu.measure import DEVICE
from bench.oracle.operations import Error
from bench.suite.cases import pixels
from fastbn import FastBNOnlyResNet, fit, fit_replicas, freeze, fuse
from fastbn.data.feed import Resident
from fastbn.planning import precision
from fastbn.recipe import Recipe
from fastbn.training.cuda_graph import Captured
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals


def captured(small: bool, kind: str) -> Iterator[Error]:
    """fit's step as a graph against the same step launched anew, over two epochs with a ragged batch: the
    same bits."""
    size, batch, count = (6, 4, 10) if small else (32, 32, 80)
    data = pixels(count, size).to(DEVICE)
    recipe, runs = Recipe(epochs=2, batch_size=batch, precision=kind).resolved(2), []
    for plain in (False, True):
        model = freeze(FastBNOnlyResNet(8 if small else 20, engine="stock"), "bn").to(DEVICE)
        step, lines = TrainingStep(fuse(model, "triton"), Resident(data), recipe), []
        if plain:
            step._take = step._compute
        elif DEVICE.type != "cuda":
            step._take = Captured(step._compute, DEVICE, lambda device: lambda launches: launches)
        with precision.arithmetic(kind, DEVICE):
            for number in range(2 if small else 4):
                totals = Totals.zero(DEVICE)
                step.feed.begin(0, number)
                for i, inputs in enumerate(step.feed.batches(batch)):
                    step(inputs, 0.1 / (1 + number + i), totals)
                epoch = totals.loss, totals.correct.double(), totals.finite.double()
                lines.append(torch.stack(epoch).clone())
        buffers = torch.cat([b.flatten().double() for b in model.buffers()])
        state = {"vector": step.flat.vector, **step.optimizer.state}
        runs.append(state | {"totals": torch.stack(lines), "buffers": buffers})
    yield "steps that were not finite", (runs[0]["totals"][:, 2] != 1).sum().item(), 1
    for what, value in runs[0].items():
        yield f"elements that differ, {what}", (value != runs[1][what]).sum().item(), 1


def as_alone(small: bool, kind: str) -> Iterator[Error]:
    """Networks of several seeds and learning rates by fit and by fit_replicas, over epochs with a ragged
    batch, evaluations between."""
    size, count, batch, epochs = (6, 10, 4, 1) if small else (32, 80, 32, 4)
    data, held_out = pixels(count, size), pixels(count // 2, size)
    rates = [0.1, 0.3] if small else [0.1, 0.3, 0.01, 0.1]
    drawn = (FastBNOnlyResNet(8 if small else 20, seed=k, engine="stock") for k in range(len(rates)))
    models = [freeze(model, "bn").to(DEVICE) for model in drawn]
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
