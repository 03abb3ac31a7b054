"""The index of a set of shards, kept between runs: reading the headers of a million samples takes a while.

It lies in the cache folder, since the data often can't be written beside, and holds for shards of the same
names, sizes and times."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from fastbn.engine.native.kernel_cache import cache
from fastbn.errors import MachineError

VERSION = 1  # of what an index holds


def load_index(root: Path, names: list[str]) -> dict[str, np.ndarray] | None:
    """The arrays that were saved for these shards as they are now; None where there are none."""
    try:
        with np.load(_path(root, names), allow_pickle=False) as saved:
            return dict(saved)
    # the last: there is no cache folder
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MachineError):
        return None


def save_index(root: Path, names: list[str], index: dict[str, np.ndarray]) -> None:
    """Kept where that can be; where it can't, the next run reads the headers again."""
    try:
        path = _path(root, names)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            np.savez(part, **index)  # type: ignore[arg-type]
            os.replace(part, path)
    except (OSError, MachineError):
        return


def _path(root: Path, names: list[str]) -> Path:
    digest = hashlib.sha256(f"{VERSION}\n{root.resolve()}\n".encode())
    for name in names:
        state = (root / name).stat()
        digest.update(f"{name}\n{state.st_size}\n{state.st_mtime_ns}\n".encode())
    return cache() / f"shards-{digest.hexdigest()[:16]}.npz"
