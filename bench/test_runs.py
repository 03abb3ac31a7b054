"""pytest bench/test_runs.py --benchmark-only: seconds, and joules where they are counted, to the end of some
epochs of the digits; and to the accuracy at which BN-only ends, which full training passes early."""

from typing import Any

import pytest

from bench.suite import runs
from bench.suite.cases import Run
from bench.suite.session import SUITE, Suite, play


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suite = metafunc.config.stash[SUITE]
    chosen = [
        (run, provider.name) for run in suite.grid.runs for provider in runs.everyone(run, suite.device)
    ]
    metafunc.parametrize(
        "run, provider",
        chosen,
        ids=[f"{run.depth}-{run.epochs}x-b{run.batch_size}-{name}" for run, name in chosen],
    )


def test_run(suite: Suite, benchmark: Any, run: Run, provider: str) -> None:
    play(benchmark, suite.runs(run)[provider][-1])


def test_time_to_the_same_accuracy(suite: Suite, benchmark: Any, run: Run, provider: str) -> None:
    found = runs.reaching(suite.runs(run), provider)
    if found is None:
        pytest.skip(
            f"{provider} was not, or not in {run.epochs} epochs, at the accuracy with which fastbn's run ends"
        )
    play(benchmark, found, ", to fastbn's accuracy")
