"""pytest bench/test_scaling.py --benchmark-only: a step's time and saved bytes against depth, batch and
width; exponents at the end."""

from typing import Any

import pytest

from bench.suite.cases import Case
from bench.suite.session import SUITE, Suite, play


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suite = metafunc.config.stash[SUITE]
    # where curves cross, once
    cases = dict.fromkeys(case for grown in suite.grid.scaling.values() for case in grown)
    chosen = [(case, provider.name) for case in cases for provider in suite.few(case)]
    metafunc.parametrize("case, provider", chosen, ids=[f"{case.key}-{name}" for case, name in chosen])


def test_scaling(suite: Suite, benchmark: Any, case: Case, provider: str) -> None:
    play(benchmark, suite.scaling(case)[provider])
