"""pytest bench/test_scaling.py --benchmark-only: a step's time and saved bytes against depth, batch and
width; exponents at the end."""

from typing import Any

from bench.suite.cases import Case
from bench.suite.session import Suite, play

LEVEL = "scaling"


def test_scaling(suite: Suite, benchmark: Any, case: Case, provider: str) -> None:
    play(benchmark, suite.scaling(case)[provider])
