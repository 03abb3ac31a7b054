"""pytest bench/test_steps.py --benchmark-only: forward, backward and update of whole networks, by
everyone."""

from typing import Any

from bench.suite.cases import Case
from bench.suite.session import Suite, play

LEVEL = "step"


def test_step(suite: Suite, benchmark: Any, case: Case, provider: str) -> None:
    play(benchmark, suite.steps(case)[provider])
