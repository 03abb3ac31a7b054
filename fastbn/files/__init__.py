"""Files that somebody else may have made, opened within bounds; and our own, written whole or not at all.

A file is read only where it is a regular one, of a size that its kind may have: no FIFO is waited for and no
device is drained. A file is written under a random name beside its target, flushed and renamed, so that a
kill or a full disk leaves what was there before, and no link is followed. Imports nothing but the standard
library."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from fastbn.errors import UsageError, escaped

AnyPath = str | os.PathLike[str]
SMALL = 1 << 20  # bytes: more than any JSON file of a run has
SHOWN = 160  # characters of somebody else's text that a message repeats
PART = re.compile(r"\.fastbn-[0-9a-f]{16}\.part")  # the names of files that are being written


def look(path: AnyPath) -> os.stat_result | None:
    """Return what lies at a path, links followed, or None where nothing does. Raises UsageError where that
    can't be found out."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{shown(path)}: it can't be looked at ({reason(error)}); give another path"
        ) from None


def is_folder(path: AnyPath) -> bool:
    """Tell whether a folder lies there. Raises UsageError as `look`."""
    status = look(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def is_file(path: AnyPath) -> bool:
    """Tell whether a regular file lies there. Raises UsageError as `look`."""
    status = look(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def opened(path: AnyPath, most: int | None = None) -> BinaryIO:
    """Open a regular file of at most so many bytes for reading. Raises OSError, whose `strerror` says why
    not."""
    try:
        # without which a FIFO waits for a writer
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None  # a NUL in the path
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, "a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if most is not None and status.st_size > most:
            raise OSError(
                errno.EFBIG, f"{status.st_size:,} bytes, more than the {most:,} that such a file may have"
            )
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read(path: AnyPath, most: int | None = None) -> bytes:
    """Return a file's bytes, as many as it had when it was opened. Raises OSError as `opened`."""
    with opened(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def read_json(path: AnyPath, most: int = SMALL) -> Any:
    """Return what a JSON file holds. Raises OSError as `opened`, and ValueError for what is no JSON."""
    return parsed(read(path, most).decode("utf-8"))


def parsed(text: str) -> Any:
    """Return what a JSON text says. Raises ValueError, for one that is nested too deeply too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


@contextlib.contextmanager
def writing(path: AnyPath) -> Iterator[BinaryIO]:
    """Give a file that takes the target's place when the block ends. Raises OSError; what was there before
    is then still there."""
    folder, name = os.path.split(os.path.abspath(path))
    part = os.path.join(folder, f".fastbn-{secrets.token_hex(8)}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, os.path.join(folder, name))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    _sync(folder)


def write(path: AnyPath, content: bytes) -> None:
    """Write a file whole or not at all. Raises OSError as `writing`."""
    with writing(path) as file:
        file.write(content)


def _sync(folder: str) -> None:
    """Flush a folder's entries to the disk, where its file system can; the file is in its place by now."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def reason(error: BaseException) -> str:
    """Return why something failed, in a few words on one line."""
    return shown(
        (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    )


def shown(text: object, most: int = SHOWN) -> str:
    """Return somebody else's text as a message may repeat it: on one line, what can't be printed escaped,
    cut in its middle."""
    whole = str(text)
    if len(whole) > most:
        whole = f"{whole[: most // 2]}…{whole[-(most // 2) + 1 :]}"
    return escaped(whole)
