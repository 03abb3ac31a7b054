"""pytest bench/ --benchmark-only: stock PyTorch and fastbn, side by side in one process.

    pytest bench/ --benchmark-only --record        the default grid, kept as
                                                   bench/results/bench-<device>-<date>.json
    pytest bench/ --benchmark-only --grid full     the large cases, for a GPU or patience
    pytest bench/test_steps.py --benchmark-only --depth 32 [--batch-size 128] [--size 32] [--compiled]
                                                   a network of your choice

bench/suite/cases.py has the grids. pytest-benchmark's own options, --benchmark-json among them, work as ever.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.records.conditions import RESULTS
from bench.suite.cases import Case, grid
from bench.suite.providers import left_out
from bench.suite.session import SUITE, Suite
from bench.suite.summary import lines
from fastbn.machine.devices import choose_device


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastbn's benchmarks")
    grids, kinds = ("tiny", "default", "full"), ("auto", "cpu", "cuda")
    group.addoption("--grid", default="default", choices=grids, help="how much to measure")
    group.addoption("--record", action="store_true", help="keep every row in a file of --results")
    what = "where --record writes (bench/results)"
    group.addoption("--results", type=Path, default=RESULTS, metavar="DIR", help=what)
    group.addoption("--device", default="auto", choices=kinds, help="cuda where there is one")
    group.addoption("--depth", type=int, help="takes steps of this network instead of the grid's")
    group.addoption("--batch-size", type=int, default=128, help="its images a step")
    group.addoption("--size", type=int, default=32, help="its images' height and width")
    group.addoption("--compiled", action="store_true", help="stock under torch.compile too")


def pytest_configure(config: pytest.Config) -> None:
    # before pytest-benchmark looks: its own configure comes last
    config.option.benchmark_timer = "bench.suite.clock.played"
    device = choose_device(config.getoption("--device"))
    found = grid(config.getoption("--grid"), device)
    if config.getoption("--depth") is not None:
        case = Case(config.getoption("--depth"), config.getoption("--batch-size"), config.getoption("--size"))
        found = dataclasses.replace(found, steps=(case,), memory=())
    # g++ takes a minute or two a case where Triton takes seconds: on a CPU only if asked for
    if config.getoption("--compiled"):
        found = dataclasses.replace(found, compiled=found.steps)
    config.stash[SUITE] = Suite(found, device, small=config.getoption("--grid") == "tiny")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Share a module's LEVEL out to a test for each case and provider."""
    tests = metafunc.config.stash[SUITE].tests(metafunc.module.LEVEL)
    metafunc.parametrize("case, provider", list(tests.values()), ids=list(tests))


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Suite:
    return request.config.stash[SUITE]


@pytest.fixture(scope="session", autouse=True)
def machine(suite: Suite) -> dict[str, float]:
    """The machine's own copy bandwidth and matmul rate, measured before anything else."""
    return suite.machine


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    suite = config.stash[SUITE]
    if not suite.rows:
        return
    record = suite.record()
    terminalreporter.section("fastbn beside stock")
    out = [f"left out: {what}" for what in left_out(suite.device, bool(suite.grid.compiled))]
    for line in [*lines(record), *out]:
        terminalreporter.write_line(line)
    if config.getoption("--record"):
        results = config.getoption("--results")
        results.mkdir(parents=True, exist_ok=True)
        path = record.save(f"bench-{record.device}", results)
        terminalreporter.write_line(f"recorded in {path}")
