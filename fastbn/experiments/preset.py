"""A preset: runs of the ordinary trainer as data, with the published figures beside them. Imports no
torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastbn.errors import UsageError
from fastbn.settings.arguments import parse
from fastbn.settings.config import Config

GRADES = {
    "printed": "printed in the study's text or a table",
    "digitised": "read off the study's figure, ±0.5",
    "re-run": "of others who ran the study's code again",
    "unknown init": "printed or digitised, of another initialisation that the study does not name",
}

MARKS = ("cut", "smaller set")  # fewer epochs than the study's; fewer examples


@dataclasses.dataclass(frozen=True)
class Figure:
    """A published figure, in percent: its grade, one of GRADES, and what it is of, as a run's metrics name
    it."""

    value: float
    grade: str
    of: str = "test_accuracy"


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table: settings of the trainer, run with every seed. `after`: the line whose run of
    the same seed it starts from."""

    name: str
    settings: Mapping[str, Any]
    published: tuple[Figure, ...] = ()
    after: str | None = None


@dataclasses.dataclass(frozen=True)
class Quick:
    """The cut of --quick: some of the lines, these settings over theirs. It is never compared with the
    published figures."""

    lines: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Preset:
    """An experiment. `states`: where its study differs from the trainer's defaults, and what the study does
    not say. `quick`: the cut of --quick, or why there is none. `mark`: the word, one of MARKS, for an
    experiment that is less than its study's; such figures stand beside the published ones with that word
    alone, and no difference is taken. `examples`: of the training set, where sets of one name differ in
    size."""

    name: str
    title: str
    source: str
    states: str
    lines: tuple[Line, ...]
    quick: Quick | str
    seeds: int = 3
    mark: str = ""
    examples: int | None = None

    def cut(self, quick: bool) -> tuple[Line, ...]:
        """Return its lines, or those of the quick cut with its settings. Raises UsageError where it has no
        quick cut."""
        if not quick:
            return self.lines
        if isinstance(self.quick, str):
            raise UsageError(f"{self.name} has no --quick: {self.quick}")
        kept = [line for line in self.lines if line.name in self.quick.lines]
        return tuple(
            dataclasses.replace(line, settings={**line.settings, **self.quick.settings}) for line in kept
        )


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: a line with a seed, and its folder."""

    line: Line
    seed: int
    out: Path
    arguments: tuple[str, ...]

    @property
    def config(self) -> Config:
        """Return the run's settings, as the trainer's command line reads them."""
        return parse([*self.arguments, "--out", str(self.out)])


def command(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as the trainer's arguments."""
    words: list[str] = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return words


def folder(root: Path, preset: Preset, quick: bool) -> Path:
    """Return the folder of an experiment's runs and its table."""
    return root / (f"{preset.name}-quick" if quick else preset.name)


def run_name(line: str, seed: int) -> str:
    """Return the name of a run's folder."""
    return f"{re.sub(r'[^0-9A-Za-z.@+=-]+', '-', line)}-s{seed}"


def jobs(
    preset: Preset, root: Path, quick: bool = False, seeds: int | None = None, more: Sequence[str] = ()
) -> list[Job]:
    """Return the runs that a preset expands to, those of the first seed first. `more`: arguments for every
    one of them, over the preset's."""
    count = seeds or (1 if quick else preset.seeds)
    made: dict[tuple[str, int], Job] = {}
    for seed in range(count):
        for line in preset.cut(quick):
            arguments = [*command(line.settings), "--seed", str(seed)]
            if line.after is not None:
                arguments += ["--weights", str(made[line.after, seed].out)]
            out = folder(root, preset, quick) / run_name(line.name, seed)
            made[line.name, seed] = Job(line, seed, out, (*arguments, *more))
    return list(made.values())


def beside(job: Job, replicas: int) -> tuple[str, int]:
    """Return what the runs that one process trains side by side have in common: a line, and each so many
    seeds of it."""
    return job.line.name, job.seed // replicas


def shard(jobs: Sequence[Job], i: int, n: int, replicas: int = 1) -> list[Job]:
    """Return the i-th of n parts of an experiment, i from 0; a run, the one that it starts from and its
    replicas lie in the same part."""
    firsts = list(dict.fromkeys(beside(job, replicas) for job in jobs if job.line.after is None))
    chains = {group: k for k, group in enumerate(firsts)}
    for job in jobs:
        if job.line.after is not None:
            chains[beside(job, replicas)] = chains[job.line.after, job.seed // replicas]
    return [job for job in jobs if chains[beside(job, replicas)] % n == i]
