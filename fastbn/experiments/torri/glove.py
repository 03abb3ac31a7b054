"""Word vectors from a GloVe text file: a word and its numbers a line. The first reading leaves a binary copy
that is memory-mapped.

Source   Pennington, Socher, Manning 2014, GloVe: Global Vectors for Word Representation.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastbn.errors import UsageError


def read_glove(path: str | Path, width: int) -> tuple[dict[str, int], np.ndarray]:
    """(word -> row, (V, width) float32, memory-mapped where a copy could be kept).

    The copy lies beside the file as FILE.fastbn.npy, its words as FILE.fastbn.json, and is made anew when the
    file's size or time has changed. Raises UsageError for a file that is missing, whose vectors have another
    width, or with a broken line, which it names."""
    path = Path(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise UsageError(f"word vectors {path}: {error.strerror or error}") from error
    matrix, index = path.with_name(path.name + ".fastbn.npy"), path.with_name(path.name + ".fastbn.json")
    stamp = [status.st_size, status.st_mtime_ns]
    try:
        kept = json.loads(index.read_text(encoding="utf-8"))
        vectors = np.load(matrix, mmap_mode="r")
        if kept["stamp"] != stamp or len(kept["words"]) != len(vectors):
            raise ValueError("of another file")
        words = kept["words"]
    except (OSError, ValueError, KeyError, TypeError):
        words, vectors = _parse(path)
        _keep(matrix, index, words, vectors, stamp)
    if vectors.shape[1] != width:
        has = vectors.shape[1]
        raise UsageError(
            f"word vectors {path} have {has} numbers a word, the embedding takes {width}; give --embedding "
            f"{has} or another"
        )
    return {word: row for row, word in enumerate(words)}, vectors


def _parse(path: Path) -> tuple[list[str], np.ndarray]:
    words: list[str] = []
    rows: list[np.ndarray] = []
    width = 0
    for number, line in enumerate(_lines(path), 1):
        # a word may hold a space, but for the first
        word, *rest = line.rsplit(b" ", width) if width else line.split(b" ")
        width = width or len(rest)
        try:
            row = np.array(rest, dtype=np.float32)
        except ValueError:
            row = np.empty(0, np.float32)
        if len(row) != width or not width:
            raise UsageError(
                f"word vectors {path}: line {number} is not a word and {width or 'some'} numbers; the file "
                "is damaged"
            )
        words.append(word.decode("utf-8", "replace"))
        rows.append(row)
    if not rows:
        raise UsageError(f"word vectors {path}: the file is empty")
    return words, np.stack(rows)


def _lines(path: Path) -> Iterator[bytes]:
    if not path.stat().st_size:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for line in iter(mapped.readline, b""):
            if line.strip():
                yield line.rstrip(b"\r\n ")


def _keep(matrix: Path, index: Path, words: list[str], vectors: np.ndarray, stamp: list[int]) -> None:
    """The copy; where the folder can't be written to, there is none."""
    part = matrix.with_name(matrix.name + f".{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            np.save(file, vectors)
        os.replace(part, matrix)
        part.write_text(json.dumps({"stamp": stamp, "words": words}), encoding="utf-8")
        os.replace(part, index)
    except OSError:
        part.unlink(missing_ok=True)
