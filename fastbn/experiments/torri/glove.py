"""Word vectors from a GloVe text file: a word and its numbers per line. The first reading leaves a binary
copy that is memory-mapped.

Source   Pennington, Socher, Manning 2014, GloVe: Global Vectors for Word Representation.
"""

from __future__ import annotations

import array
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastbn import files
from fastbn.errors import UsageError
from fastbn.files.access import access
from fastbn.machine.environment import place

LONGEST = 1 << 20  # bytes of a line
WIDEST = 10_000  # numbers a word
MOST_WORDS = 1 << 30  # bytes of the copy's words


def read_glove(path: str | Path, width: int) -> tuple[dict[str, int], np.ndarray]:
    """Return (word -> row, (V, width) float32, memory-mapped where a copy could be kept).

    The copy lies beside the file as FILE.fastbn.npy, its words as FILE.fastbn.json, and is made anew when the
    file's size or time has changed, and, with a word, when it is damaged: its SHA-256 is verified at each
    start. Raises UsageError for a file that is missing, whose vectors have another width, or with a broken
    line, which it names: one without a word and finite numbers, as many as the first has, or longer than 1
    MiB.
    """
    path = Path(path)
    try:
        with files.opened(path) as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        raise UsageError(f"word vectors {path}: {files.reason(error)}") from error
    matrix, index = path.with_name(path.name + ".fastbn.npy"), path.with_name(path.name + ".fastbn.json")
    stamp = [status.st_size, status.st_mtime_ns]
    with access("word vectors", path):
        kept = _kept(matrix, index, stamp)
        if kept is None:
            kept = _parse(path)
            _keep(matrix, index, *kept, stamp)
    words, vectors = kept
    if vectors.shape[1] != width:
        has = vectors.shape[1]
        raise UsageError(
            f"word vectors {path} have {has} numbers a word, the embedding takes {width}; give --embedding "
            f"{has} or another"
        )
    return {word: row for row, word in enumerate(words)}, vectors


def _kept(matrix: Path, index: Path, stamp: list[int]) -> tuple[list[str], np.ndarray] | None:
    """Return the copy's words and vectors; None where there is none, one of another file, or, with a word, a
    damaged one."""
    try:
        content = files.read_json(index, MOST_WORDS)
        if content["stamp"] != stamp:
            return None
        with files.opened(matrix):  # a regular file: what maps it does not ask
            vectors = np.load(matrix, mmap_mode="r", allow_pickle=False)
        if vectors.dtype != np.float32 or vectors.ndim != 2 or not vectors.flags.c_contiguous:
            raise ValueError(f"it holds {vectors.dtype} {vectors.shape}")
        if content["sha256"] != _digest(content["words"], vectors):
            raise ValueError("its SHA-256 is another")
        return content["words"], vectors
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged header raises anything, from EOFError to a tokenizer's error
        if place().rank == 0:
            why = f"{type(error).__name__}: {files.reason(error)}"
            print(
                f"fastbn: the kept copy {files.shown(matrix)} is damaged ({why}); it is made anew",
                file=sys.stderr,
                flush=True,
            )
        return None


def _digest(words: list[str], vectors: np.ndarray) -> str:
    """Return the SHA-256 of the words and the vectors."""
    digest = hashlib.sha256(json.dumps([words, vectors.shape]).encode())
    digest.update(vectors.data)
    return digest.hexdigest()


def _parse(path: Path) -> tuple[list[str], np.ndarray]:
    words: list[str] = []
    numbers = array.array("f")  # all rows
    width = 0
    for number, line in _lines(path):
        word, *rest = (
            line.rsplit(b" ", width) if width else line.split(b" ")
        )  # a word may hold a space, but for the first
        width = width or len(rest)
        if width > WIDEST:
            raise UsageError(
                f"word vectors {path}: line {number} holds {width:,} numbers, and up to {WIDEST:,} are "
                "read; it is another file"
            )
        try:
            row = np.array(rest, dtype=np.float32)
        except ValueError:
            row = np.empty(0, np.float32)
        if len(row) != width or not width:
            raise UsageError(
                f"word vectors {path}: line {number} is not a word and {width or 'some'} numbers; the file "
                "is damaged"
            )
        if not np.isfinite(row).all():
            raise UsageError(
                f"word vectors {path}: line {number} holds a number that is not finite; the file is damaged"
            )
        words.append(word.decode("utf-8", "replace"))
        numbers.frombytes(row.tobytes())
    if not words:
        raise UsageError(f"word vectors {path}: the file is empty")
    return words, np.frombuffer(numbers, np.float32).reshape(len(words), width)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that hold something, numbered from 1."""
    with files.opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
            if len(line) > LONGEST:
                raise UsageError(
                    f"word vectors {path}: line {number} is longer than {LONGEST:,} bytes; it is another file"
                )
            if line.strip():
                yield number, line.rstrip(b"\r\n ")


def _keep(matrix: Path, index: Path, words: list[str], vectors: np.ndarray, stamp: list[int]) -> None:
    """Keep the copy; where the folder can't be written to, there is none."""
    try:
        with files.writing(matrix) as file:
            np.save(file, vectors)
        content = {"stamp": stamp, "sha256": _digest(words, vectors), "words": words}
        files.write(index, json.dumps(content).encode())
    except OSError:
        return
