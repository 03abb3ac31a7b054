"""A worker process, which takes tasks from a socket, puts pixels into memory that it shares with the parent.
Imports no torch.

It is a program of its own rather than a fork: no device, thread or lock of the parent's comes along, and a
script needs no `if __name__ == "__main__"`. It ends when the socket closes, and so with the parent, however
that dies."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import re
import warnings
from multiprocessing.connection import Connection
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fastbn import files
from fastbn.data.image_file import MOST_BYTES
from fastbn.data.imagenet.decode import View, decode
from fastbn.data.imagenet.members import members
from fastbn.data.imagenet.source import Location


class PixelRow(NamedTuple):
    """A decoded sample: where its pixels start, in bytes, their height and width, the box within them,
    mirrored or not."""

    start: int
    height: int
    width: int
    box: tuple[float, float, float, float]
    flip: bool


class Decode(NamedTuple):
    """A task: decode samples into the shared memory from byte `start` on; a PixelRow each, or the reason
    why there is none."""

    start: int
    samples: list[tuple[int, Location]]
    view: View
    size: int
    ahead: list[Location]  # soon asked for: the system may read them in this order already

    def __call__(self, memory: np.ndarray) -> list[PixelRow | str]:
        for location in self.ahead:
            with contextlib.suppress(OSError):  # told when it is read itself
                os.posix_fadvise(
                    _opened(location.path).fileno(), location.start, location.size, os.POSIX_FADV_WILLNEED
                )
        rows: list[PixelRow | str] = []
        start = self.start
        for sample, location in self.samples:
            try:
                pixels, box, flip = decode(read(location), sample, self.view, self.size)
            except Exception as error:  # each format's decoder raises its own
                rows.append(_one_line(error))
                continue
            memory[start : start + pixels.size] = pixels.reshape(-1)
            rows.append(PixelRow(start, pixels.shape[0], pixels.shape[1], box, flip))
            start += pixels.size
        return rows


class Failed(NamedTuple):
    """The answer of a task that could not be done."""

    reason: str


class Members(NamedTuple):
    """A task: the members of a shard."""

    path: str

    def __call__(self, memory: np.ndarray) -> Any:
        return members(self.path)


def read(location: Location) -> bytes:
    """Return the bytes there; raises OSError where there are fewer."""
    if location.size < 0:
        return files.read(location.path, MOST_BYTES)
    if location.size > MOST_BYTES:
        raise OSError(f"{location.size:,} bytes, more than the {MOST_BYTES:,} that an image may have")
    content = os.pread(_opened(location.path).fileno(), location.size, location.start)
    if len(content) < location.size:
        raise OSError(f"{location.size:,} bytes at {location.start:,}, found {len(content):,}")
    return content


def _one_line(error: Exception) -> str:
    """Return what an error says, without the addresses of objects: the same in every process."""
    return f"{type(error).__name__}: {files.shown(' '.join(re.sub(r'<[^>]*>', '', str(error)).split()))}"


@functools.lru_cache(maxsize=32)
def _opened(path: str) -> BinaryIO:
    """Return an open shard: it is opened once, not once per sample, and the least used is closed."""
    return files.opened(path)


def perform(task: Any, memory: np.ndarray) -> Any:
    """Return a task's result, or how it failed."""
    try:
        return task(memory)
    except Exception as error:
        return Failed(_one_line(error))


def main(socket: int, shared: int) -> None:
    """Serve jobs until the parent is gone. socket: the file descriptor of the connection; shared: that of the
    memory into which images are decoded."""
    warnings.simplefilter("ignore")  # Pillow's, of odd metadata: an image that decodes is good
    memory = np.frombuffer(mmap.mmap(shared, 0), np.uint8)
    connection = Connection(socket)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, or wants no more
        while True:
            connection.send(perform(connection.recv(), memory))
