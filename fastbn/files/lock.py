"""Let one process in at a time, by a lock on a file."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from fastbn.files import AnyPath


@contextlib.contextmanager
def locked(path: AnyPath, mode: int = 0o666) -> Iterator[None]:
    """Hold the lock on a file, which is made with this mode where there is none; its content stays. A kill
    leaves no lock behind. A file system without locks goes without.

    No link is followed. Raises OSError where the file can't be opened.

    with locked(folder / ".download.lock"):
        ...
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "rb") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
