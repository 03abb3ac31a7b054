"""The places of the bytes of each sample of a set, and its label: class folders and shards alike."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastbn.files import shown


class Location(NamedTuple):
    """A stretch of a file."""

    path: str
    start: int
    size: int  # bytes; −1: the whole file


@dataclass(frozen=True, eq=False)
class SampleSource:
    """N samples in F files. Names are kept as bytes: a million of them take tens of megabytes."""

    layout: str  # a phrase for people
    root: Path
    classes: tuple[str, ...]
    files: np.ndarray  # (F,) bytes: paths below root
    labels: np.ndarray  # (N,) int64
    # (N,) int32, increasing: the file that holds each; None: sample i is file i
    shard: np.ndarray | None = None
    start: np.ndarray | None = None  # (N,) int64: where in it
    size: np.ndarray | None = None  # (N,) int64: how many bytes
    keys: np.ndarray | None = None  # (N,) bytes: their names in the shards

    def __len__(self) -> int:
        return len(self.labels)

    def location(self, i: int) -> Location:
        if self.shard is None or self.start is None or self.size is None:
            return Location(self._path(i), 0, -1)
        return Location(self._path(int(self.shard[i])), int(self.start[i]), int(self.size[i]))

    def describe(self, i: int) -> str:
        """Return a sample's name for people."""
        if self.shard is None or self.keys is None:
            return self._path(i)
        return f"{shown(os.fsdecode(self.keys[i]))} in {self._path(int(self.shard[i]))}"

    def _path(self, k: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.files[k]))
