"""Damage to files, drawn by a seed: to bytes, to what lies at a path, to a JSON file's values; and the bounds
within which whatever reads them has to say no."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import zlib
from pathlib import Path

import numpy as np
import pytest

from fastbn.errors import UsageError

MOST_MEMORY = 1 << 30  # bytes above what the process had
MOST_SECONDS = 20
MOST_CHARACTERS = 700  # of a message: some lines of a screen, where it names four of pytest's long paths
NUMBERS = [
    b"-1",
    b"0",
    b"2",
    b"65536",
    b"999999999",
    b"9" * 30,
    b"9" * 5_000,
    b"nan",
    b"-inf",
    b"1e999",
    b"1e-999",
    b"\xd9\xa3",
]
WORDS = [-1, 0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 62) + 1, (1 << 63) - 1]


TEXTS = ("", "x", "a\nb\x1b[31m", "../../etc/passwd", "/dev/zero")
BAD_VALUES = (None, True, -1, 0, 1 << 40, 10**30, 1e400, float("nan"), *TEXTS, [], {}, [[]], [1, "x"])


def draws_of(*parts) -> np.random.Generator:
    """Draws of its own for whatever these parts name."""
    return np.random.default_rng(zlib.crc32("/".join(map(str, parts)).encode()))


def one(choices, draws: np.random.Generator):
    """Return one of these."""
    return choices[int(draws.integers(len(choices)))]


def mutated(blob: bytes, draws: np.random.Generator) -> bytes:
    """Return a copy with some damage: bits, bytes, numbers, lengths."""
    data = bytearray(blob or draws.bytes(1))
    n = max(1, len(data))
    start = (
        int(draws.integers(n)) if draws.integers(3) else int(draws.integers(min(n, 600)))
    )  # headers are in front
    length = int(2 ** draws.uniform(0, np.log2(n + 1)))
    kind = int(draws.integers(12))
    if kind <= 1:
        for _ in range(1 + kind * 7):
            data[int(draws.integers(n)) if kind else start] ^= 1 << int(draws.integers(8))
    elif kind == 2:
        data[start : start + length] = bytes([int(draws.choice([0, 255, 32, 10]))]) * min(length, n - start)
    elif kind == 3:
        data[start : start + min(length, 64)] = draws.bytes(min(length, 64))
    elif kind == 4:
        del data[start:]
    elif kind == 5:
        del data[start : start + length]
    elif kind == 6:
        data[start:start] = data[start : start + length]
    elif kind == 7:
        data[start:start] = draws.bytes(min(length, 64))
    elif kind in (8, 9):
        size = int(draws.choice([1, 2, 4, 8]))
        number = int(WORDS[draws.integers(len(WORDS))]) & ((1 << 8 * size) - 1)
        data[start : start + size] = number.to_bytes(size, ("little", "big")[int(draws.integers(2))])
    elif kind == 10:
        found = list(re.finditer(rb"-?\d+(?:\.\d+)?", blob))
        if found:
            match = found[int(draws.integers(len(found)))]
            data[match.start() : match.end()] = NUMBERS[draws.integers(len(NUMBERS))]
    else:
        data = bytearray(
            (b"", draws.bytes(100), b"\0" * n, b"[" * 200_000, b"\n" * 50, b"a," * 1_000_000)[
                int(draws.integers(6))
            ]
        )
    return bytes(data)


def of_value(value, draws: np.random.Generator):
    """Return a JSON value with one place in it altered: another value or type, a key gone, one more, one
    renamed."""
    parent, key = one(list(_places(value)), draws)
    kind = int(draws.integers(6))
    if kind == 0 and isinstance(parent, dict):
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent["unknown"] = one(BAD_VALUES, draws)
    elif kind == 2 and isinstance(parent, dict):
        parent[key + "x"] = parent.pop(key)
    else:
        parent[key] = one(BAD_VALUES, draws)
    return value


def _places(value):
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in list(inside):
        yield value, key
        yield from _places(each)


def of_json(content: bytes, draws: np.random.Generator) -> bytes:
    """Return a line of the text altered as a value."""
    lines = content.decode().splitlines() if content.count(b"\n{") else [content.decode()]
    at = int(draws.integers(len(lines)))
    lines[at] = json.dumps(of_value(json.loads(lines[at]), draws))
    return ("\n".join(lines) + "\n").encode()


PLACES = ["fifo", "folder", "device", "dangling", "loop", "sparse"]


def put(path: Path, place: str) -> None:
    """Nothing, or something else than a file, in its place; "sparse": one that has 2 TB and takes no room."""
    path.unlink()
    if place == "gone":
        return
    if place == "fifo":
        os.mkfifo(path)
    elif place == "folder":
        path.mkdir()
    elif place == "sparse":
        path.touch()
        os.truncate(path, 1 << 41)
    else:
        path.symlink_to({"device": "/dev/zero", "dangling": "/nowhere/at/all", "loop": path}[place])


class TooLong(BaseException):
    """No error that a command may take for one of a file's."""


@contextlib.contextmanager
def bounded():
    """Inside, more than so many seconds of this process's own raise TooLong; more than so much memory is an
    AssertionError at the end, at the latest."""

    def late(*_):
        raise TooLong(f"more than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    alarm_before = signal.signal(signal.SIGALRM, late)  # for what waits without working, at a FIFO
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(
        resource.RLIMIT_AS, (has + 4 * MOST_MEMORY, hard)
    )  # threads reserve some that they don't use
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)  # what others take does not count
    signal.alarm(6 * MOST_SECONDS)
    Path("/proc/self/clear_refs").write_text("5")
    start = _peak()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        signal.signal(signal.SIGPROF, before)
        signal.signal(signal.SIGALRM, alarm_before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert _peak() - start < MOST_MEMORY, f"{(_peak() - start) / 1e6:.0f} MB"


def _peak() -> int:
    """Return the most memory that this process has had since it was last set back."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def refused(call, *arguments, match, kind=UsageError, **more):
    """The call is refused within the bounds, in one line that says this."""
    with bounded(), pytest.raises(kind, match=match) as caught:
        call(*arguments, **more)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
