"""SIGINT and SIGTERM as a request that the loop honours between two steps; a second one ends the process
at once, wherever it comes."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


class StopRequest:
    """Holds the signal that came, and whether a second one insists."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._insists = False

    @property
    def signal(self) -> int | None:
        """Return the number of the signal that came, or None. Raises KeyboardInterrupt where a second one
        came and its own was lost."""
        if self._insists:
            raise KeyboardInterrupt
        return self._signal

    def hear(self, number: int) -> None:
        """Note the first signal."""
        self._signal = number

    def insist(self) -> None:
        """Note that a second one has to end what is under way."""
        self._insists = True


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Listen for signals while it lasts; elsewhere than in the main thread it hears none.

    A second SIGINT raises KeyboardInterrupt. Python drops an exception in a finalizer, with a line on stderr:
    that one is raised again at the loop's next look at the request."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    shown = sys.unraisablehook

    def note(number: int, frame: Any) -> None:
        request.hear(number)
        for known, handler in before.items():
            signal.signal(known, handler)

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            request.insist()
        else:
            shown(unraisable)

    for number in before:
        signal.signal(number, note)
    sys.unraisablehook = dropped
    try:
        yield request
    finally:
        sys.unraisablehook = shown
        for number, handler in before.items():
            signal.signal(number, handler)
