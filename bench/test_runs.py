"""pytest bench/test_runs.py --benchmark-only: seconds, and joules where they are counted, to the end of some
epochs of the digits; and to the accuracy at which BN-only ends, which full training passes early."""

from typing import Any

import pytest

from bench.suite import runs
from bench.suite.cases import Run
from bench.suite.session import Suite, play

LEVEL = "run"


def test_run(suite: Suite, benchmark: Any, case: Run, provider: str) -> None:
    play(benchmark, suite.runs(case)[provider][-1])


def test_time_to_the_same_accuracy(suite: Suite, benchmark: Any, case: Run, provider: str) -> None:
    found = runs.reaching(suite.runs(case), provider)
    if found is None:
        never = f"was not, or not in {case.epochs} epochs, at the accuracy with which fastbn's run ends"
        pytest.skip(f"{provider} {never}")
    play(benchmark, found, ", to fastbn's accuracy")
