"""Read what runs left behind, finished or under way, and find the runs of a preset's line by their settings.

A run is a record (run-….json, of bench.record) or a folder that the trainer wrote. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastbn.data.names import USUAL
from fastbn.errors import UsageError
from fastbn.experiments.preset import Line, Preset, command, run_name
from fastbn.experiments.results import REMEDY
from fastbn.models import families
from fastbn.settings import saved
from fastbn.settings.arguments import parse
from fastbn.settings.config import Config, known

SMALL_GAMMA = "gamma_below_0.01"
OF_THE_RUN = (  # settings that say where and how a run runs, not what it measures
    "seed", "out", "data_dir", "download", "resume", "engine", "exact_conv", "device", "threads", "precision",
    "memory", "rank_timeout", "explain", "on", "devices", "step_seconds", "track",
)  # fmt: skip
Identity = tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run is known by its settings, its epochs and how it ended.

    place: the file or folder that it was read from. gammas: the histogram of the γ that it ended with, or
    empty."""

    place: Path
    config: Config
    summary: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]
    gammas: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Return whether the run has trained all epochs that it was asked for."""
        return bool(self.summary) and (
            self.config.train == "none" or len(self.epochs) >= (self.config.epochs or 0)
        )

    @functools.cached_property
    def identity(self) -> Identity:
        """Return the settings by which runs of the same line are known."""
        return identity(self.config)

    @property
    def steps_per_epoch(self) -> int:
        """Return the steps per epoch; 0 where no epoch is over, or nothing trained."""
        return int(self.epochs[-1]["step"]) // len(self.epochs) if self.epochs else 0

    def holds(self, examples: int) -> bool:
        """Tell whether an epoch had this many training examples, as far as its number of steps tells."""
        size = self.config.batch_size
        return isinstance(size, int) and self.steps_per_epoch == -(-examples // size)

    def figure(self, of: str) -> float | None:
        """Return a figure of its end in percent, a metric or the share of γ below 0.01; None where it has
        none."""
        if of == SMALL_GAMMA:
            value = self.gammas.get("below_0.01")
        else:
            value = self.epochs[-1].get(of, self.summary.get(of)) if self.epochs else None
        return None if value is None else 100.0 * value


def identity(config: Config) -> Identity:
    """Return the settings that say what a run measures, but its seed; nothing is left open."""
    settings = config.settings(config.epochs or 1, "fp32", USUAL.get(config.dataset, {}))
    spec = families.resolve(
        config.depth, width=config.width, family=config.family, conv_bias=config.conv_bias
    )
    settings = {name: value for name, value in settings.items() if name not in OF_THE_RUN}
    settings |= {name: getattr(spec, name) for name in ("depth", "width", "family", "conv_bias")}
    for name in ("vectors", "weights"):  # whose folders differ between machines
        settings[name] = settings[name] and Path(settings[name]).name
    return tuple(sorted(settings.items()))


def of_line(line: Line, seed: int) -> Identity:
    """Return the identity of a line's run with this seed."""
    start = [] if line.after is None else ["--weights", run_name(line.after, seed)]
    return identity(parse([*command(line.settings), *start, "--seed", str(seed)]))


def read(places: Iterable[Path]) -> list[Run]:
    """Return every run in these folders once.

    Of several with the same settings and seed a finished one counts, then the latest, then the one that got
    further. Raises UsageError for a place that is not there, or a record that can't be read."""
    groups: dict[tuple[Identity, int], dict[int, Run]] = {}
    for run in (run for place in places for run in _in(place)):
        group = groups.setdefault((run.identity, run.config.seed), {})
        steps = run.steps_per_epoch
        if steps not in group or _rank(run) > _rank(group[steps]):
            group[steps] = run
    for group in groups.values():
        if len(group) > 1 and 0 in group and not group[0].finished:
            del group[0]  # begun, no epoch over: the same run as the other
    return [run for group in groups.values() for run in group.values()]


def runs_of(preset: Preset, line: Line, runs: Iterable[Run]) -> list[Run]:
    """Return the runs of this line by seed: those with its settings, and of its data set's size where it
    is said."""
    runs = list(runs)
    seeds = {run.config.seed for run in runs} if line.after else {0}  # what a run starts from differs by seed
    identities = {seed: of_line(line, seed) for seed in seeds}
    matching = [run for run in runs if run.identity == identities[run.config.seed if line.after else 0]]
    sized = [run for run in matching if preset.examples is None or run.holds(preset.examples)]
    return sorted(sized, key=lambda run: run.config.seed)


def load(path: Path) -> Run:
    """Read the run of a record's file. Raises UsageError for a file that is not one."""
    body = _json(path)
    if not {"config", "summary", "epochs"} <= body.keys():
        lacks = "it has no config, summary and epochs"
        raise UsageError(f"{path} is no record of a run: {lacks}; make one with python -m bench.record RUN")
    return run_of(path, body["config"], body["summary"], body["epochs"], body.get("gammas", {}))


def _in(place: Path) -> list[Run]:
    """Read the runs below a folder: its records, and the folders of runs."""
    if not place.is_dir():
        raise UsageError(
            f"runs are read from {place}, and there is no such folder; name others with --records"
        )
    records = [load(path) for path in sorted(place.glob("run-*.json"))]
    return records + [folder_of(path.parent) for path in sorted(place.rglob("config.json"))]


def folder_of(path: Path) -> Run:
    """Read the run of a folder that the trainer wrote, or is writing.

    Raises UsageError where its settings can't be read.
    """
    summary = _json(path / "summary.json") if (path / "summary.json").exists() else {}
    return run_of(path, _json(path / "config.json"), summary, _lines(path / "metrics.jsonl"))


def run_of(place: Path, saved: Any, summary: Any = (), epochs: Any = (), gammas: Any = ()) -> Run:
    """Make the run of what was saved of it, its settings at least. Raises UsageError for what is no run's."""
    try:
        settings = {name: value for name, value in saved.items() if name in known()}
        if settings.get("milestones") is not None:
            settings["milestones"] = tuple(settings["milestones"])
        run = Run(place, Config.of(settings), dict(summary), [dict(line) for line in epochs], dict(gammas))
        _ = run.identity, run.steps_per_epoch
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        told = f"{place} is no run, or a damaged one ({error}); move it away, or use another copy"
        raise UsageError(told) from error
    return run


def _rank(run: Run) -> tuple[Any, ...]:
    return run.finished, run.summary.get("date", ""), len(run.epochs), run.place.is_file(), str(run.place)


def _lines(path: Path) -> list[dict[str, Any]]:
    return saved.lines(path, ("test_accuracy",), being_written=True, remedy=REMEDY)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} can't be read as JSON ({error}); move it away, or use another copy"
        ) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UsageError(
            f"{path} should hold a JSON object, found a {kind}; move it away, or use another copy"
        )
    return content
