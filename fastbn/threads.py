"""How PyTorch's own threads wait. Imports no torch: OpenMP's library reads its settings when torch is
loaded."""

from __future__ import annotations

import os

SPINS = 3000  # some tens of microseconds


def wait_briefly() -> None:
    """Lets threads of GNU's OpenMP sleep soon after they have nothing to do, unless the user's environment
    says how they wait.

    By default they spin for milliseconds after each operation: beside any other process they hold the
    processor that the thread they wait for needs, and training slows down tenfold."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
