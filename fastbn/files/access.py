"""The system's errors while a data set or a file of weights is read, as one line of fastbn's."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from fastbn.errors import MachineError, UsageError, is_out_of_memory
from fastbn.files import AnyPath, reason, shown

NO_ROOM = ("can't start new thread",)  # how the lack of memory shows beside those of is_out_of_memory


@contextlib.contextmanager
def access(what: str, path: AnyPath) -> Iterator[None]:
    """Turn an OSError into a UsageError that names the path, and memory that ran out into a MachineError."""
    try:
        yield
    except (UsageError, MachineError):
        raise
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise _no_memory(what, path) from None
        where = error.filename if isinstance(error.filename, (str, bytes)) else path
        raise UsageError(
            f"{what}: {shown(where)} can't be read ({reason(error)}); check the path and its permissions"
        ) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) and not any(words in str(error) for words in NO_ROOM):
            raise
        raise _no_memory(what, path) from None


def _no_memory(what: str, path: AnyPath) -> MachineError:
    return MachineError(
        f"{what}: the memory ran out while {shown(path)} was read; give this process more, or read less"
    )
