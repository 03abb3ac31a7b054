"""How a command imports torch. OpenMP's library reads its settings when torch is loaded; torch swallows an
interruption here and there among its imports, and would go on by halves."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

SPINS = 3000  # some tens of microseconds


def load_torch() -> None:
    """Import torch for a command, its threads told to wait briefly. Raises KeyboardInterrupt after the import
    where a SIGINT came in it; a second one ends the process."""
    wait_briefly()
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as of a script's command in the background
    if ignored or threading.current_thread() is not threading.main_thread():
        import torch._dynamo

        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    before = signal.signal(signal.SIGINT, note)
    try:
        import torch._dynamo  # noqa: F401  # which fastbn's engine needs: the longest of the imports
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if came:
        raise KeyboardInterrupt


def wait_briefly() -> None:
    """Let threads of GNU's OpenMP sleep soon after they have nothing to do, unless the user's environment
    says how they wait.

    By default they spin for milliseconds after each operation: beside any other process they hold the
    processor that the thread they wait for needs, and training slows down tenfold."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
