"""The subjects of the report's sections: groups of runs, and of each one run that is looked into."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from fastbn.analysis.affine import Affine, affine
from fastbn.analysis.curves import groups
from fastbn.analysis.runs import FinishedRun
from fastbn.models.network import Network


@dataclasses.dataclass(frozen=True)
class Subject:
    """A group of runs that the report shows as one: they differ in the seed alone, and the first is looked
    into."""

    name: str
    runs: list[FinishedRun]  # that differ in the seed alone
    kind: int  # its colour

    @property
    def run(self) -> FinishedRun:
        """Return the run that is looked into."""
        return self.runs[0]

    @property
    def model(self) -> Network:
        return self.run.model

    @functools.cached_property
    def affine(self) -> Affine:
        return affine(self.model)


def subjects(runs: Sequence[FinishedRun]) -> list[Subject]:
    """Return the runs as groups, each with its name and its colour, in the order of their first runs."""
    return [Subject(name, group, i % 6) for i, (name, group) in enumerate(groups(runs))]


def spread_out(count: int, most: int) -> list[int]:
    """Return at most `most` of 0 … count − 1, evenly, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})
