"""Feeds, from which training and evaluation take their batches.

A feed yields, for each batch, a few tensors on the device: as little as can be (indices, of a set that lies
there whole), and turns them into images and labels where the step runs, so that a step that is one CUDA graph
holds that work too."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fastbn.data.augment import Epoch, batch, draw_epoch
from fastbn.data.batches import PAIRS, Batches
from fastbn.data.images import Images
from fastbn.errors import UsageError

Inputs = tuple[Tensor, ...]  # one batch, (n, …) each


@runtime_checkable
class Feed(Protocol):
    """Samples with labels. What an epoch draws depends on (seed, epoch) and the sample alone."""

    name: str
    classes: tuple[str, ...]
    default_epochs: int

    @property
    def sample(self) -> tuple[int, ...]:
        """Return the shape of one sample as the network takes it: (3, H, W) of images."""

    @property
    def nbytes(self) -> int:
        """Return the bytes of what lies on the device between steps."""

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Feed: ...

    def begin(self, seed: int, epoch: int) -> None:
        """Draw an epoch's order and augmentation."""

    def batches(self, size: int, first: int = 0, share: tuple[int, int] = (0, 1)) -> Iterator[Inputs]:
        """Yield the epoch's batches of `size` from the `first` on, the ragged last one kept; of each the part
        of rank share[0] of share[1]."""

    def load(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, labels) of what `batches` yielded: x (n, …) as the network takes it, labels (n,) int64.
        The host waits for nothing."""

    def held_out(self, size: int, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, labels) of every sample in order, without draws, `size` at a time; of these batches each
        share[1]th, from share[0] on."""


class Resident:
    """The feed of a set that lies whole on its device: a batch is its indices."""

    def __init__(self, images: Images):
        self.images = images
        self.name, self.classes, self.default_epochs = images.name, images.classes, images.default_epochs
        self._epoch: Epoch | None = None

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def sample(self) -> tuple[int, int, int]:
        _, height, width, _ = self.images.images.shape
        return 3, height, width

    @property
    def nbytes(self) -> int:
        return self.images.images.nbytes + self.images.labels.nbytes

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Resident:
        return Resident(self.images.to(device))

    def begin(self, seed: int, epoch: int) -> None:
        host = draw_epoch(
            len(self.images), seed, epoch, self.images.pad, self.images.flip, self.images.brightness
        )
        drawn = host.to(self.device)
        # there a part of a tensor is a graph of its own, one for each place; a part of the host's is data
        if self.device.type == "xla":
            drawn = dataclasses.replace(drawn, order=host.order)
        if self._epoch is None:
            self._epoch = drawn
            return
        for name in ("order", "offsets", "flips", "brightness"):  # in place: a captured step reads them there
            if (there := getattr(self._epoch, name)) is not None:
                there.copy_(getattr(drawn, name))

    def batches(self, size: int, first: int = 0, share: tuple[int, int] = (0, 1)) -> Iterator[Inputs]:
        assert self._epoch is not None, "begin() draws the epoch first"
        rank, ranks = share
        for indices in self._epoch.order.split(size)[first:]:
            yield (indices.tensor_split(ranks)[rank].to(self.device),)

    def load(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        (indices,) = inputs
        return batch(self.images, indices, self._epoch), self.images.labels[indices]

    def held_out(self, size: int, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[Tensor, Tensor]]:
        rank, ranks = share
        for part in torch.arange(len(self.images)).split(size)[rank::ranks]:
            indices = part.to(self.device)
            yield batch(self.images, indices, None), self.images.labels[indices]


def feed(samples: object, device: torch.device, what: str = "images") -> Feed:
    """Return the feed of a set, or of a DataLoader and the like (see `Batches`), on the device. Raises
    UsageError for the rest."""
    if isinstance(samples, Images):
        return Resident(samples.to(device))
    if isinstance(samples, Feed):
        return samples.to(device)
    if isinstance(samples, Iterable) and not isinstance(samples, (Tensor, str, bytes, Mapping)):
        first = next(iter(samples), None) if isinstance(samples, (list, tuple)) else (0, 0)
        if isinstance(first, (list, tuple)) and len(first) == 2:
            return Batches(samples, device, what)
    images = "fastbn.Images(uint8 (N, H, W, 3), labels)"
    raise UsageError(f"{what} must be {images}, or a DataLoader of {PAIRS}; got {type(samples).__name__}")
