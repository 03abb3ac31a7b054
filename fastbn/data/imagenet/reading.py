"""Batches of samples, in a given order: handed to the workers in chunks some way ahead, gathered, sent to the
device.

A training sample that can't be read is replaced by the next one of the set that can (sample i by i + 1, …),
with that one's label and
draws: batches keep their size, for every rank, and what replaces it does not depend on the batch. In
evaluation it is left out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fastbn.data.imagenet.broken import Broken
from fastbn.data.imagenet.decode import View
from fastbn.data.imagenet.pool import DecodeJob, Pool
from fastbn.data.imagenet.resample import ROW
from fastbn.data.imagenet.source import Location, SampleSource
from fastbn.data.imagenet.upload import PixelBuffer, Upload
from fastbn.data.imagenet.worker import Decode, PixelRow

# (part, first of its places) -> what may be fetched along with that chunk
Ahead = Callable[[int, int], list[Location]]
CHUNK = 16  # samples a task


class Chunk:
    """Part of a batch in work: the places of its samples in the set, and their rows as they come in."""

    def __init__(self, slot: int, places: np.ndarray, ahead: list[Location]):
        self.slot, self.places, self.ahead = slot, places.tolist(), ahead
        self.rows: list[PixelRow | None] = [None] * len(places)
        self.missing = list(range(len(places)))
        self.end = 0  # bytes of the slot that are in use
        self.job: DecodeJob | None = None


class BatchReading:
    """A reading of the samples `indices` (n,) of a source, a view's part of each; `replace`: as in
    training."""

    def __init__(
        self, source: SampleSource, indices: np.ndarray, view: View, size: int, broken: Broken, replace: bool
    ):
        self.source, self.indices, self.view, self.size = source, indices, view, size
        self.broken, self.replace = broken, replace

    def batches(
        self, pool: Pool, upload: Upload, parts: Sequence[np.ndarray], ahead: Ahead
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, labels) of each part: places (k,) in `indices`."""
        coming = (
            (j, k, part[k : k + CHUNK]) for j, part in enumerate(parts) for k in range(0, len(part), CHUNK)
        )
        chunks: deque[Chunk] = deque()

        def fill() -> None:
            while pool.free and (new := next(coming, None)) is not None:
                j, k, places = new
                chunk = Chunk(pool.free.popleft(), places, ahead(j, k))
                self._submit(pool, chunk)
                chunks.append(chunk)

        for part in parts:
            buffer, rows = upload.begin(), list[tuple[float, ...]]()
            for _ in range(0, len(part), CHUNK):
                fill()
                chunk = chunks.popleft()
                self._complete(pool, chunk)
                self._gather(pool, chunk, buffer, rows)
                pool.free.append(chunk.slot)
            fill()
            yield upload.finish(
                buffer, torch.tensor(rows, dtype=torch.float64).view(len(rows), ROW), self.size
            )

    def _submit(self, pool: Pool, chunk: Chunk) -> None:
        samples = [int(self.indices[chunk.places[k]]) for k in chunk.missing]
        located = [(sample, self.source.location(sample)) for sample in samples]
        start = chunk.slot * pool.slot_bytes + chunk.end
        chunk.job = pool.submit(
            Decode(start, located, self.view, self.size, chunk.ahead), first=bool(chunk.end)
        )

    def _complete(self, pool: Pool, chunk: Chunk) -> None:
        """Wait until each sample has its row, or, in evaluation, was found broken."""
        while chunk.missing:
            assert chunk.job is not None
            broken = []
            for k, row in zip(chunk.missing, pool.result(chunk.job), strict=True):
                if isinstance(row, PixelRow):
                    chunk.rows[k] = row
                    chunk.end += 3 * row.height * row.width
                    continue
                self.broken.note(self.source.describe(int(self.indices[chunk.places[k]])), row)
                chunk.places[k] = (chunk.places[k] + 1) % len(self.indices)
                broken.append(k)
            chunk.missing = broken if self.replace else []
            chunk.ahead = []
            if chunk.missing:
                self._submit(pool, chunk)

    def _gather(self, pool: Pool, chunk: Chunk, buffer: PixelBuffer, rows: list[tuple[float, ...]]) -> None:
        """Move the chunk's pixels from its slot to the buffer."""
        base = chunk.slot * pool.slot_bytes
        moved = buffer.append(torch.from_numpy(pool.memory[base : base + chunk.end])) - base
        for place, row in zip(chunk.places, chunk.rows, strict=True):
            if row is not None:
                label = int(self.source.labels[self.indices[place]])
                rows.append((row.start + moved, row.height, row.width, *row.box, row.flip, label))
