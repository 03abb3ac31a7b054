"""The environment by which torchrun tells a process its place. Imports no torch: the command line
asks before that."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
import re
from collections.abc import Iterator

from fastbn.errors import UsageError
from fastbn.files import shown

REMEDY = "start ranks by torchrun, or unset it"


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a process among those of its run."""

    rank: int  # 0 … count−1
    count: int
    local: int  # its number among those on its machine
    restarts: int  # how often torchrun has started them all again


_PLACED: contextvars.ContextVar[Place | None] = contextvars.ContextVar("placed", default=None)


def place() -> Place:
    """Return this process's place; rank 0 of 1 where it belongs to no others. Raises UsageError where the
    environment says something else."""
    if (given := _PLACED.get()) is not None:
        return given
    names = {
        "rank": ("RANK", 0),
        "count": ("WORLD_SIZE", 1),
        "local": ("LOCAL_RANK", 0),
        "restarts": ("TORCHELASTIC_RESTART_COUNT", 0),
    }
    here = Place(**{field: _number(name, default) for field, (name, default) in names.items()})
    if here.rank >= here.count:
        raise UsageError(f"the environment's RANK is {here.rank}, of WORLD_SIZE {here.count}; {REMEDY}")
    return here


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", text):
        raise UsageError(f"the environment's {name} is {shown(text)!r}, no number; {REMEDY}")
    return int(text)


@contextlib.contextmanager
def placed(there: Place) -> Iterator[None]:
    """Inside, this thread's place is the given one: another launcher than torchrun says so, which starts
    threads in processes."""
    token = _PLACED.set(there)
    try:
        yield
    finally:
        _PLACED.reset(token)
