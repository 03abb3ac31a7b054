"""The feed of a DataLoader, or of any other iterable of (images, labels): batches that somebody else made,
cut to the size of a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from fastbn.errors import UsageError

PAIRS = "(images, labels): floating-point (n, C, H, W) as the network takes them, and integers (n,)"


class Batches:
    """Samples as an iterable gives them, once through it per epoch.

    pairs   a DataLoader, a list, anything that starts anew at each `iter` and yields (images, labels):
            floating-point (n, C, H, W), augmented and normalised already, and integers (n,); n may differ
            from pair to pair, the rest of the shape may not

    Pairs are joined and cut to the batch size of the training, whatever their own is, and copied to the
    device as they come. The order and the augmentation are the iterable's own: the training's seed has no
    part in them, and what is continued in the middle of an epoch leaves out as many samples of a new pass.
    How many samples a pass has is asked of a DataLoader, and counted, by one pass more, of anything else; a
    pass of another number raises UsageError, as do ranks, each of which would see an order of its own.
    """

    classes: tuple[str, ...] = ()
    default_epochs = 160
    nbytes = 0

    def __init__(self, pairs: Iterable[Any], device: torch.device | str = "cpu", what: str = "batches"):
        if isinstance(pairs, Iterator):
            raise UsageError(
                f"{what} can be gone through only once, and each epoch needs a pass: got "
                f"{type(pairs).__name__}; pass a list"
            )
        self._pairs, self.device, self.name = pairs, torch.device(device), what
        self._sample: tuple[int, ...] | None = None
        self._count: int | None = _told(pairs)

    @property
    def sample(self) -> tuple[int, ...]:
        if self._sample is None and next(self._checked(), None) is None:
            raise UsageError(f"{self.name} holds no samples; pass pairs of {PAIRS}")
        assert self._sample is not None
        return self._sample

    def __len__(self) -> int:
        if self._count is None:
            self._count = sum(len(labels) for _, labels in self._checked())
        if not self._count:
            raise UsageError(f"{self.name} holds no samples; pass pairs of {PAIRS}")
        return self._count

    def to(self, device: torch.device | str) -> Batches:
        """Return the same pairs for another device."""
        return self if torch.device(device) == self.device else Batches(self._pairs, device, self.name)

    def begin(self, seed: int, epoch: int) -> None:
        """Begin an epoch; nothing is drawn: the iterable has its own order."""

    def batches(
        self, size: int, first: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        given, expected = 0, len(self)
        for number, (images, labels) in enumerate(self._cut(size, share)):
            given += len(labels)
            if given > expected:
                break
            if number >= first:
                yield self._there(images, labels)
        if given != expected:
            counted = f"{'more than ' if given > expected else ''}{min(given, expected):,}"
            raise UsageError(
                f"a pass through {self.name} gave {counted} samples, where it was to give {expected:,}; "
                "each pass gives as many"
            )

    def load(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `batches` yielded: it lies on the device."""
        images, labels = inputs
        return images, labels

    def held_out(self, size: int, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._cut(size, share):
            yield self._there(images, labels)

    def _there(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
        return images.to(self.device).contiguous(memory_format=layout), labels.to(self.device, torch.int64)

    def _cut(self, size: int, share: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a pass, `size` samples at a time, the ragged last part kept."""
        if share[1] > 1:
            raise UsageError(
                f"{self.name} has an order of its own in each of the {share[1]} ranks; pass fastbn.Images, "
                "which they share"
            )
        waiting: list[tuple[Tensor, Tensor]] = []
        room = size
        for images, labels in self._checked():
            while len(labels):
                waiting.append((images[:room], labels[:room]))
                images, labels, room = images[room:], labels[room:], room - len(waiting[-1][1])
                if not room:
                    yield _joined(waiting)
                    waiting, room = [], size
        if waiting:
            yield _joined(waiting)

    def _checked(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the pairs of a pass. Raises UsageError for what is none."""
        for pair in self._pairs:
            if (
                not isinstance(pair, (tuple, list))
                or len(pair) != 2
                or not all(hasattr(part, "shape") for part in pair)
            ):
                raise UsageError(f"{self.name} must give pairs of {PAIRS}; got {_kind(pair)}")
            images, labels = (torch.as_tensor(part) for part in pair)
            integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
            if (
                not images.is_floating_point()
                or images.ndim < 2
                or not integers
                or labels.shape != images.shape[:1]
            ):
                raise UsageError(
                    f"{self.name} must give pairs of {PAIRS}; got {_kind(images)} and {_kind(labels)}"
                )
            shape = tuple(images.shape[1:])
            self._sample = self._sample or shape
            if shape != self._sample:
                raise UsageError(
                    f"{self.name} must give images of one size; got {shape} after {self._sample}; resize "
                    "them to one"
                )
            yield images, labels


def _told(pairs: object) -> int | None:
    """Return how many samples a DataLoader gives per pass, where it can tell."""
    if (
        not isinstance(pairs, DataLoader)
        or pairs.batch_size is None
        or isinstance(pairs.dataset, IterableDataset)
    ):
        return None
    count = len(pairs.sampler)  # type: ignore[arg-type]
    return count - count % pairs.batch_size if pairs.drop_last else count


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def _kind(value: object) -> str:
    """Return what something is, in a few words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")
