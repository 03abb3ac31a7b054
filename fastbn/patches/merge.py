"""The average of several patches of one base: of clients that trained apart, or of a soup of runs.

Source   McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data
         (FedAvg's weighted mean); Wortsman et al. 2022, Model soups; Chan, Golub, LeVeque 1983, the pooled
         variance.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastbn.errors import UsageError
from fastbn.files import shown
from fastbn.patches.apply import write_onto
from fastbn.patches.contents import COUNTER, RUNNING
from fastbn.patches.patch import Patch, read
from fastbn.patches.summary import comparable
from fastbn.training import checkpoint

AnyFile = str | os.PathLike[str]


def merge_patches(
    paths: Sequence[AnyFile], out: AnyFile, weights: Sequence[float] | None = None, **metadata: Any
) -> None:
    """Write the average of several patches of the same base as a patch.

    weights: how much each counts, positive numbers: the images of a client, say; equal without them.
    metadata: as of `fastbn.save`.

    Parameters, and buffers of floating-point numbers, become Σ wᵢ·xᵢ. Running statistics are pooled as those
    of all the batches together, nᵢ the weights, or without them the counters num_batches_tracked:

        μ = Σ nᵢ·μᵢ / n        σ² = Σ nᵢ·(σᵢ² + (μᵢ − μ)²) / n        n = Σ nᵢ

    and counters are added. Raises UsageError for fewer than two patches, patches of another base or with
    other tensors, weights that are none, and whole numbers that differ; MachineError where `out` can't be
    written.

        fastbn.merge_patches(["a.safetensors", "b.safetensors"], "mean.safetensors", weights=[500, 1500])
    """
    patches = [read(path) for path in paths]
    if len(patches) < 2:
        raise UsageError(f"merge takes two patches or more, got {len(patches)}")
    for path, patch in zip(paths[1:], patches[1:], strict=True):
        _check(patches[0], patch, f"{shown(path)} does not go with {shown(paths[0])}")
    if weights is not None and (
        len(weights) != len(patches) or not all(math.isfinite(w) and w > 0 for w in weights)
    ):
        raise UsageError(
            f"merge needs a positive weight for each of {len(patches)} patches, got {list(weights)}"
        )
    tensors = merged([patch.tensors for patch in patches], weights)
    metadata = {"merged": [os.path.basename(os.fspath(path)) for path in paths], **metadata}
    if patches[0].of_checkpoint:
        model = checkpoint.load(paths[0], "stock")
        write_onto(model, tensors)
        checkpoint.save(model, out, **metadata)
    else:
        dataclasses.replace(patches[0], tensors=tensors, metadata=metadata).write(out)


def merged(states: Sequence[dict[str, Tensor]], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Return the average of tensors by name, as `merge_patches` has it."""
    given = torch.tensor([1.0] * len(states) if weights is None else list(weights), dtype=torch.float64)
    average: dict[str, Tensor] = {}
    for name, first in states[0].items():
        owner, _, key = name.rpartition(".")
        values = torch.stack([state[name] for state in states])
        prefix = f"{owner}." if owner else ""
        if key == COUNTER:
            average[name] = values.sum(0)
        elif not first.is_floating_point():
            if not all(torch.equal(value, values[0]) for value in values):
                raise UsageError(f"{shown(name, 80)} holds whole numbers that differ, which have no average")
            average[name] = first
        elif key in RUNNING and f"{prefix}{RUNNING[1]}" in states[0]:
            shares = _shares([state.get(prefix + COUNTER) for state in states], given, weights is None)
            means = torch.stack([state[prefix + RUNNING[0]] for state in states]).double()
            mean = _mean(means, shares)
            pooled = mean if key == RUNNING[0] else _mean(values.double() + (means - mean).square(), shares)
            average[name] = pooled.to(first.dtype)
        else:
            average[name] = _mean(values.double(), given / given.sum()).to(first.dtype)
    return average


def _shares(counts: list[Tensor | None], given: Tensor, counted: bool) -> Tensor:
    """Return how much each one's statistics count, summing to 1."""
    if counted and all(count is not None for count in counts):
        batches = torch.stack([count.double() for count in counts if count is not None])
        given = batches if float(batches.sum()) > 0 else given
    return given / given.sum()


def _mean(values: Tensor, shares: Tensor) -> Tensor:
    """Return Σ share·value over the first dimension."""
    return torch.tensordot(shares, values, 1)


def _check(first: Patch, other: Patch, what: str) -> None:
    if first.sha256 != other.sha256 or first.frozen != other.frozen:
        raise UsageError(f"{what}: their frozen weights differ; merge patches of one base")
    names = first.tensors.keys() ^ other.tensors.keys()
    if not names:
        names = {
            name
            for name, t in first.tensors.items()
            if not comparable(first, other, name)
            or t.shape != other.tensors[name].shape
            or t.dtype != other.tensors[name].dtype
        }
    if names:
        raise UsageError(f"{what}: {shown(min(names), 80)} is not the same kind of tensor in both")
