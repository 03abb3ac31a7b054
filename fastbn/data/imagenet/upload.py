"""A batch of images of differing sizes on its way to the device: their pixels in one flat buffer of bytes,
and a row for each.

On CUDA the buffer is pinned and there are two: while a step runs, the next batch is copied beside it in a
stream of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbn.data.imagenet.resample import ROW, resample

START = 1 << 20  # bytes; grows with need


class PixelBuffer:
    """One batch's pixels on the host and on the device."""

    def __init__(self, device: torch.device):
        self.pinned = device.type == "cuda"
        self.bytes, self.used = torch.empty(START, dtype=torch.uint8, pin_memory=self.pinned), 0
        self.rows = torch.empty(0, ROW, dtype=torch.float64, pin_memory=self.pinned)
        if self.pinned:
            self.there = torch.empty(0, dtype=torch.uint8, device=device)
            self.copied, self.read = torch.cuda.Event(), torch.cuda.Event()

    def append(self, pixels: Tensor) -> int:
        """Return where the bytes (k,) now start."""
        start, end = self.used, self.used + len(pixels)
        if end > len(self.bytes):
            larger = torch.empty(
                max(end, len(self.bytes) * 3 // 2), dtype=torch.uint8, pin_memory=self.pinned
            )
            larger[:start] = self.bytes[:start]
            self.bytes = larger
        self.bytes[start:end] = pixels
        self.used = end
        return start


class Upload:
    """The way of batches to the device, in turn."""

    def __init__(self, device: torch.device):
        self.device = device
        self._cuda = device.type == "cuda"
        self._buffers = [PixelBuffer(device) for _ in range(2 if self._cuda else 1)]
        self._copies = torch.cuda.Stream(device) if self._cuda else None

    def begin(self) -> PixelBuffer:
        """Return an empty buffer for the next batch; waits until the copy of the batch before the last is
        through."""
        buffer = self._buffers[0]
        self._buffers.append(self._buffers.pop(0))
        if self._cuda:
            buffer.copied.synchronize()
        buffer.used = 0
        return buffer

    def finish(self, buffer: PixelBuffer, rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return (x, labels) on the device of the samples in rows (n, ROW); the host waits for nothing."""
        if self._copies is None:
            pixels = buffer.bytes[: buffer.used]
            if self.device.type == "xla":  # which would compile for each batch's number of bytes
                return resample(pixels, rows, size).to(self.device), rows[:, -1].long().to(self.device)
            here = rows.to(self.device)
            return resample(pixels.to(self.device), here, size), here[:, -1].long()
        if len(buffer.rows) < len(rows):
            buffer.rows = torch.empty(rows.shape, dtype=torch.float64, pin_memory=True)
        buffer.rows[: len(rows)] = rows
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(buffer.read)
            if len(buffer.there) < buffer.used:
                buffer.there = torch.empty(len(buffer.bytes), dtype=torch.uint8, device=self.device)
            buffer.there[: buffer.used].copy_(buffer.bytes[: buffer.used], non_blocking=True)
            there = buffer.rows[: len(rows)].to(self.device, non_blocking=True)
            buffer.copied.record(self._copies)
        current.wait_event(buffer.copied)
        for tensor in (buffer.there, there):  # allocated in one stream, read in another
            tensor.record_stream(current)
        x, labels = resample(buffer.there, there, size), there[:, -1].long()
        buffer.read.record(current)
        return x, labels
