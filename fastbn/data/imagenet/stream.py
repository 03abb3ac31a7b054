"""`Stream`: the feed of an image set that lies on disk; and ImageNet in either of its layouts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastbn import draws
from fastbn.data.class_folders import pillow
from fastbn.data.imagenet.broken import Broken
from fastbn.data.imagenet.crops import CentreCrop, RandomCrop, most_bytes
from fastbn.data.imagenet.folders import read_folders
from fastbn.data.imagenet.order import Order, draw
from fastbn.data.imagenet.pool import TIMEOUT, Crew, cores
from fastbn.data.imagenet.reading import CHUNK, Ahead, BatchReading
from fastbn.data.imagenet.shards import find_shards, read_shards
from fastbn.data.imagenet.source import Location, SampleSource
from fastbn.data.imagenet.upload import Upload
from fastbn.errors import UsageError
from fastbn.files import is_folder, look
from fastbn.files.access import access


class Stream:
    """Labelled images on disk as batches on a device: float32 (n, 3, size, size), channels last, normalised
    as ImageNet is.

    source   where the samples lie;   crew   the processes that decode them, started by the first batch
    indices  which of the source's samples, increasing; all by default

    Training draws a random resized crop and a mirroring for each sample from (seed, epoch, sample);
    evaluation takes the centre (8/7 of the size on the shorter side). Images that can't be read are named on
    stderr; more than 1% of them is a UsageError."""

    default_epochs = 90

    def __init__(
        self,
        source: SampleSource,
        crew: Crew,
        size: int = 224,
        name: str = "imagenet",
        device: torch.device | str = "cpu",
        indices: np.ndarray | None = None,
    ):
        self.source, self.crew, self.size, self.name = source, crew, size, name
        self.device = torch.device(device)
        self.indices = np.arange(len(source)) if indices is None else indices  # (n,) int64
        self.classes = source.classes
        self._drawn: tuple[Order, RandomCrop] | None = None
        self._said: set[str] = set()

    @property
    def sample(self) -> tuple[int, int, int]:
        return 3, self.size, self.size

    @property
    def nbytes(self) -> int:
        return 0

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        what = f"{len(self)} of {self.size}×{self.size}, {len(self.classes)} classes, {self.source.layout}"
        return f"Stream({self.name!r}, {what}, {self.device})"

    def to(self, device: torch.device | str) -> Stream:
        """Return the same set, its batches on another device."""
        return self if torch.device(device) == self.device else self._with(device=device)

    def limit(self, n: int | None) -> Stream:
        """Return `n` samples drawn from the set, always the same ones and a smaller draw within a larger;
        None or n ≥ N: all."""
        if n is None or n >= len(self):
            return self
        if n < 1:
            raise UsageError(
                f"a limit of {n} images leaves nothing of {self.name}; ask for 1 … {len(self)}, or leave it "
                "out for all"
            )
        return self._with(
            indices=np.sort(self.indices[draws.permutation(0, f"limit/{self.name}", len(self))[:n]])
        )

    def split(self, n: int, seed: int) -> tuple[Stream, Stream]:
        """Return (the rest, `n` held out for validation), drawn by the seed."""
        if not 1 <= n < len(self):
            raise UsageError(
                f"cannot hold {n} images out of the {len(self)} of {self.name}; ask for 1 … {len(self) - 1}"
            )
        order = draws.permutation(seed, f"split/{self.name}", len(self))
        return self._with(indices=np.sort(self.indices[order[n:]])), self._with(
            indices=np.sort(self.indices[order[:n]])
        )

    def begin(self, seed: int, epoch: int) -> None:
        """Draw the epoch's order, and what its crops are drawn by."""
        shard = None if self.source.shard is None else self.source.shard[self.indices]
        self._drawn = draw(len(self), seed, epoch, shard), RandomCrop(seed, epoch, self.size)

    def batches(
        self, size: int, first: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield (x, labels) of the epoch's batches of `size` samples from the `first` on, the ragged last one
        kept; of each the part of rank share[0] of share[1], which is empty where a last batch has fewer
        samples than there are ranks. What is skipped is not read."""
        assert self._drawn is not None, "begin() draws the epoch first"
        (order, view), (rank, ranks) = self._drawn, share
        starts = range(first * size, len(self), size)
        spans = [
            np.array_split(np.arange(start, min(start + size, len(self))), ranks)[rank] for start in starts
        ]

        def ahead(j: int, k: int) -> list[Location]:
            if order.fetched is None:
                return []
            wanted = spans[j][k : k + CHUNK] + order.window
            return [
                self.source.location(int(self.indices[order.fetched[place]]))
                for place in wanted
                if place < len(self)
            ]

        broken = Broken(max(1, len(self) // ranks), f"images of {self.name}")
        reading = BatchReading(self.source, self.indices, view, self.size, broken, replace=True)
        yield from self._read(reading, [order.samples[span] for span in spans], ahead)

    def load(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `batches` yielded: it lies on the device."""
        x, labels = inputs
        return x, labels

    def held_out(self, size: int, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, labels) of every sample in order, the centre of each, `size` at a time; of these batches
        each share[1]th, from share[0] on. Those that can't be read are left out."""
        rank, ranks = share
        parts = [np.arange(start, min(start + size, len(self))) for start in range(0, len(self), size)][
            rank::ranks
        ]
        broken = Broken(len(self), f"images of {self.name}")
        reading = BatchReading(
            self.source, self.indices, CentreCrop(self.size), self.size, broken, replace=False
        )
        for x, labels in self._read(reading, parts, lambda j, k: []):
            if len(labels):
                yield x, labels

    def _read(
        self, reading: BatchReading, parts: list[np.ndarray], ahead: Ahead
    ) -> Iterator[tuple[Tensor, Tensor]]:
        pool, upload = self.crew.take(), Upload(self.device)
        try:
            for batch in reading.batches(pool, upload, parts, ahead):
                reading.broken.say(self._said)
                yield batch
        except BaseException:  # a caller that stops early, too: work is left in the pool
            pool.close()
            raise
        self.crew.put_back(pool)

    def _with(self, device: torch.device | str | None = None, indices: np.ndarray | None = None) -> Stream:
        device, indices = device or self.device, self.indices if indices is None else indices
        return Stream(self.source, self.crew, self.size, self.name, device, indices)


def read_imagenet(
    data_dir: str | Path, size: int = 224, workers: int | None = None, timeout: float = TIMEOUT
) -> tuple[Stream, Stream]:
    """Return (train, val) from class folders or WebDataset shards, whichever lies in `data_dir`; nothing is
    decoded yet.

    size: the side of the crops in pixels. workers: processes that decode, this machine's cores by default; 0:
    none, for tests.
    timeout: seconds without an answer after which those processes are given up. Raises UsageError where there
    is neither layout, or it is incomplete; MachineError where Pillow or webdataset is not installed."""
    root = Path(data_dir)
    look(root)
    if size < 1 or (workers is not None and workers < 0):
        raise UsageError(
            f"the size must be at least 1 pixel and workers at least 0, got {size} and {workers}"
        )
    pillow()
    crew = Crew(cores() if workers is None else workers, CHUNK * most_bytes(size), timeout)
    with access("ImageNet", root):
        if is_folder(root / "train"):
            train, test = read_folders(root)
        elif any(find_shards(root)):
            train, test = read_shards(root, crew)
        else:
            raise _absent(root)
    return Stream(train, crew, size), Stream(test, crew, size)


def _absent(root: Path) -> UsageError:
    folders = f"class folders {root}/train/CLASS/*.JPEG and {root}/val/CLASS/*.JPEG"
    shards = f"WebDataset shards {root}/imagenet-train-000000.tar … and {root}/imagenet-val-000000.tar …"
    return UsageError(
        f"ImageNet is not in {root}: neither {folders}, nor {shards}; put one there, or name its place"
    )
