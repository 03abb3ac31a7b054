"""pytest bench/test_steps.py --benchmark-only: forward, backward and update of whole networks, by
everyone."""

from typing import Any

import pytest

from bench.suite.cases import Case
from bench.suite.session import SUITE, Suite, play


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suite = metafunc.config.stash[SUITE]
    chosen = [(case, provider.name) for case in suite.grid.steps for provider in suite.everyone(case)]
    metafunc.parametrize("case, provider", chosen, ids=[f"{case.key}-{name}" for case, name in chosen])


def test_step(suite: Suite, benchmark: Any, case: Case, provider: str) -> None:
    play(benchmark, suite.steps(case)[provider])
