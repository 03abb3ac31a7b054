"""Accuracy and loss against epochs, seconds and joules; repetitions of a run with other seeds as their
mean and deviation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fastbn.analysis.runs import FinishedRun

AXES = ("epochs", "seconds", "joules")


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run, or several of one recipe: (E,) of each, E the epochs that all of them have."""

    name: str
    runs: int
    epochs: np.ndarray  # 1 … E
    seconds: np.ndarray  # of training so far, the mean over the runs
    joules: np.ndarray | None  # of the GPU so far; None where a run has not counted them
    mean: np.ndarray
    std: np.ndarray  # of the sample (n − 1); 0 for a single run

    def against(self, axis: str) -> np.ndarray | None:
        """Return what the curve is drawn against: one of AXES."""
        return {"epochs": self.epochs, "seconds": self.seconds, "joules": self.joules}[axis]


def groups(runs: Sequence[FinishedRun]) -> list[tuple[str, list[FinishedRun]]]:
    """Return runs that differ in nothing but the seed, together, under a name that tells the groups apart:
    what trains, and of which network where there are several."""
    grouped: dict[tuple[tuple[str, str], ...], list[FinishedRun]] = {}
    for run in runs:
        grouped.setdefault(run.recipe, []).append(run)
    several = len({run.network for run in runs}) > 1
    names = [_name(group, several) for group in grouped.values()]
    twice = {name for name in names if names.count(name) > 1}
    return [
        (f"{name}: {group[0].path.name}" if name in twice else name, group)
        for name, group in zip(names, grouped.values(), strict=True)
    ]


def curves(runs: Sequence[FinishedRun], metric: str = "test_accuracy") -> list[Curve]:
    """Return a curve per group of `groups`. metric: a key of metrics.jsonl; a group in which it is lacking,
    or that has no epochs, is left out."""
    drawn = []
    for name, group in groups(runs):
        if any(metric not in line for run in group for line in run.lines):
            continue
        length = min(len(run.lines) for run in group)
        if not length:
            continue
        values = np.array([[line[metric] for line in run.lines[:length]] for run in group])
        seconds = (
            np.array([[line["seconds"] for line in run.lines[:length]] for run in group]).cumsum(1).mean(0)
        )
        joules = [[line.get("energy_joules") for line in run.lines[:length]] for run in group]
        counted = (
            None
            if any(j is None for row in joules for j in row)
            else np.array(joules, dtype=float).cumsum(1).mean(0)
        )
        std = values.std(0, ddof=1) if len(group) > 1 else np.zeros(length)
        drawn.append(Curve(name, len(group), np.arange(1, length + 1), seconds, counted, values.mean(0), std))
    return drawn


def _name(group: Sequence[FinishedRun], several: bool) -> str:
    network = f"{group[0].network}, " if several else ""
    return f"{network}{group[0].trains}" + (f", {len(group)} seeds" if len(group) > 1 else "")
