"""The index of a set of shards, kept between runs: reading the headers of a million samples takes a while.

It lies in the cache folder, since the data often can't be written beside, and holds for shards of the same
names, sizes and times."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from fastbn import files
from fastbn.engine.native.kernel_cache import cache
from fastbn.errors import MachineError
from fastbn.files.archives import check_zip
from fastbn.machine.environment import place

VERSION = 1  # of what an index holds
COLUMNS = {
    "labels": "int64",
    "shard": "int32",
    "start": "int64",
    "size": "int64",
    "keys": "bytes",
    "broken": "str",
}


def load_index(root: Path, names: list[str]) -> dict[str, np.ndarray] | None:
    """Return the arrays that were saved for these shards as they are now; None where there are none, or, with
    a word, damaged ones."""
    try:
        path = _path(root, names)
    except MachineError:  # there is no folder to keep anything in
        return None
    try:
        with files.opened(path) as file:
            check_zip(file)
            file.seek(0)
            with np.load(file, allow_pickle=False) as saved:
                index = dict(saved)
        _check(index, [(root / name).stat().st_size for name in names])
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive raises anything, from KeyError to NotImplementedError
        if place().rank == 0:
            why = f"{type(error).__name__}: {files.reason(error)}"
            print(
                f"fastbn: the kept index {files.shown(path)} is damaged ({why}); it is made anew",
                file=sys.stderr,
                flush=True,
            )
        return None
    return index


def save_index(root: Path, names: list[str], index: dict[str, np.ndarray]) -> None:
    """Keep the index where that can be; where it can't, the next run reads the headers again."""
    try:
        path = _path(root, names)
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.writing(path) as file:
            np.savez(file, **index)  # type: ignore[arg-type]
    except (OSError, MachineError):
        return


def _check(index: dict[str, np.ndarray], sizes: list[int]) -> None:
    """Raise ValueError for arrays that can't be the index of shards of these sizes in bytes."""
    if index.keys() != COLUMNS.keys():
        raise ValueError(f"it holds {', '.join(sorted(index))}")
    for name, kind in COLUMNS.items():
        array = index[name]
        if (
            array.ndim != 1
            or not np.issubdtype(array.dtype, kind)
            or (name != "broken" and len(array) != len(index["labels"]))
        ):
            raise ValueError(f"its {name} are {array.dtype} {array.shape}")
    labels, shard, start, size = (index[name] for name in ("labels", "shard", "start", "size"))
    if not len(labels) or labels.min() < 0 or start.min() < 0 or size.min() < 0:
        raise ValueError("it holds numbers below 0, or none")
    if (
        shard[0] < 0
        or shard[-1] >= len(sizes)
        or (np.diff(shard) < 0).any()
        or (start > np.array(sizes)[shard] - size).any()
    ):
        raise ValueError("it points outside the shards")


def _path(root: Path, names: list[str]) -> Path:
    digest = hashlib.sha256(f"{VERSION}\n{root.resolve()}\n".encode(errors="surrogateescape"))
    for name in names:
        state = (root / name).stat()
        digest.update(f"{name}\n{state.st_size}\n{state.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return cache() / f"shards-{digest.hexdigest()[:16]}.npz"
