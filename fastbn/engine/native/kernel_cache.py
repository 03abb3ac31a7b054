"""The folder in which built CPU kernels are kept. A library lies there beside its size and SHA-256, and is
loaded only where
both are right: to load a damaged one would end the process without a word. Names and locks are such that any
number of processes, killed at any moment, leave nothing that the next one does not put right."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fastbn.errors import MachineError

LOCK_INTERVAL = 0.2  # seconds between two tries
ROOM = 8 << 20  # bytes; a library takes less
MOST = 256 << 20  # bytes; nothing larger was built here


def cache() -> Path:
    """Return the folder; nothing has made it yet. Raises MachineError where the user has none."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):  # as it stays for a user id that the system does not know
        raise MachineError(
            "no folder to keep the CPU kernels in: XDG_CACHE_HOME and HOME are not set, and user "
            f"{os.getuid()} has no home; "
            "set XDG_CACHE_HOME to a folder that can be written"
        )
    return Path(base).absolute() / "fastbn"


def is_intact(library: Path) -> bool:
    """Return whether a library is the regular file that was written, byte for byte."""
    said = _read(_beside(library), 200)
    size, _, digest = (said or b"").decode("ascii", "replace").strip().partition(" ")
    if not size.isdecimal() or not 0 < int(size) <= MOST:
        return False
    held = _read(library, int(size) + 1)
    return held is not None and len(held) == int(size) and hashlib.sha256(held).hexdigest() == digest


def publish(part: Path, library: Path) -> None:
    """Moves a finished file to its place, with its size and digest, so that a power cut leaves both right
    or a wrong pair."""
    with open(part, "rb+") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
        os.fsync(file.fileno())
    size = part.stat().st_size
    temporary = library.parent / f"{library.name}.{secrets.token_hex(8)}.part"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with open(descriptor, "wb") as file:
        file.write(f"{size} {digest}\n".encode())
        file.flush()
        os.fsync(descriptor)
    for source, place in ((temporary, _beside(library)), (part, library)):
        if place.is_dir() and not place.is_symlink():  # nobody's of ours: set aside, whatever it holds
            os.rename(place, place.with_name(f"{place.name}.{secrets.token_hex(4)}.aside"))
        os.replace(source, place)
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(library.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path, seconds: float, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Makes the folder; inside, no other process builds in it. What killed builds left there is removed
    first.

    Waits at most so many seconds, having called `waits` once; raises MachineError after them. Where the file
    system has no locks, nobody waits."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        if _lock(descriptor, folder, time.monotonic() + seconds, waits):
            for left in folder.glob("build-*"):
                shutil.rmtree(left, ignore_errors=True)
            for left in folder.glob("kernels-*.part"):
                left.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def reserve(folder: Path) -> None:
    """Raises the OSError of a folder that has no room for a library, before minutes are spent on building
    it."""
    probe = folder / "room"
    try:
        probe.write_bytes(bytes(ROOM))
    finally:
        probe.unlink(missing_ok=True)


def _lock(descriptor: int, folder: Path, until: float, waits: Callable[[], None]) -> bool:
    said = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                raise MachineError(
                    f"another process has been building the CPU kernels in {folder} for too long; end it"
                ) from None
            if not said:
                waits()
            said = True
            time.sleep(LOCK_INTERVAL)
        except OSError:
            return False


def _beside(library: Path) -> Path:
    return library.with_name(f"{library.name}.sha256")


def _read(path: Path, most: int) -> bytes | None:
    """Return a regular file's first bytes; None for a link, a folder, a pipe, or where there is nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    except OSError:
        return None
    finally:
        os.close(descriptor)
