"""A session of benchmarks: each case is measured once, when a test first asks for it, and every row is kept
for the record."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import pytest
import torch

from bench import memory
from bench.records.rows import Record, Row, new
from bench.suite import kernels, measure, providers, runs
from bench.suite.cases import Blocks, Case, Grid, Run
from bench.suite.clock import machine_rates, played
from bench.suite.measure import Results
from bench.suite.steps import Provider


class Suite:
    def __init__(self, grid: Grid, device: torch.device, small: bool = False):
        self.grid, self.device = grid, device
        self.rows: list[Row] = []
        self._small = small

    @functools.cached_property
    def machine(self) -> dict[str, float]:
        """Return this machine's own rates, measured in this session before anything else."""
        return machine_rates(self.device, self._small)

    def record(self) -> Record:
        found = new(self.machine, self.device)
        return dataclasses.replace(found, rows=self.rows)

    def everyone(self, case: Case) -> list[Provider]:
        """Return who takes a step of this case."""
        return providers.providers(case, self.device, case in self.grid.compiled)

    def few(self, case: Case) -> list[Provider]:
        """Return who takes a step of a case of a curve."""
        return providers.few(providers.providers(case, self.device), providers.likely_best(self.device))

    def tests(self, level: str) -> dict[str, tuple[Any, str]]:
        """Return each case of a level with who takes part in it, by their test's id."""
        grid, found = self.grid, dict[str, tuple[Any, str]]()
        if level == "kernel":
            sides = (kernels.STOCK, "fastbn")
            each = itertools.product(grid.blocks, kernels.OPERATIONS, kernels.CACHES, sides)
            for blocks, operation, cache, side in each:
                name = f"{operation.replace('∇', 'grad-')}-{blocks.key}-{cache}-{side}"
                found[name] = (blocks, operation, cache), side
            return found
        if level == "run":
            everyone = {run: runs.everyone(run, self.device) for run in grid.runs}
        elif level == "step":
            everyone = {case: self.everyone(case) for case in grid.steps}
        else:  # where curves cross, once
            everyone = {case: self.few(case) for grown in grid.scaling.values() for case in grown}
        return {f"{case.key}-{p.name}": (case, p.name) for case, own in everyone.items() for p in own}

    @functools.cache  # noqa: B019 - a suite lives as long as its process
    def steps(self, case: Case) -> Results:
        found = self._steps("step", case, self.everyone(case))
        if case in self.grid.memory:
            for provider in self.few(case):
                if not found[provider.name].failed:
                    peak = memory.fresh(provider, case)[memory.PEAK]
                    found[provider.name].peak_memory_bytes = peak
        return found

    @functools.cache  # noqa: B019
    def scaling(self, case: Case) -> Results:
        return self._steps("scaling", case, self.few(case))

    def _steps(self, level: str, case: Case, everyone: list[Provider]) -> Results:
        limits = self.grid.rounds, self.grid.most_seconds
        found = measure.steps(level, case, everyone, self.device, *limits, self.machine)
        self.rows += found.values()
        return found

    @functools.cache  # noqa: B019
    def kernels(self, blocks: Blocks, operation: str) -> dict[tuple[str, str], Row]:
        """Return an operation's results by state of the caches and provider."""
        found = kernels.measure(blocks, operation, self.device, self.machine, self.grid.rounds)
        self.rows += found.values()
        return found

    @functools.cache  # noqa: B019
    def runs(self, run: Run) -> dict[str, list[Row]]:
        """Return a run's rows by provider, an epoch after the other."""
        found = runs.measure(run, self.device)
        self.rows += [row for epochs in found.values() for row in epochs]
        return found


SUITE = pytest.StashKey[Suite]()  # where a pytest config keeps it


def play(benchmark: Any, row: Row, what: str = "") -> None:
    """Play one provider's test: its samples as the benchmark's rounds; red where it failed. `what` is said
    beside the case."""
    if row.hopeless:
        pytest.skip(f"{row.case}: {row.provider}: {row.failed}")
    if row.failed:
        pytest.fail(f"{row.case}: {row.provider}: {row.failed}", pytrace=False)
    benchmark.group = f"{row.level}: {row.case}{what}"
    benchmark.extra_info.update(row.told())
    played.play(benchmark, row.samples or [])
