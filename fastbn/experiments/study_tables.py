"""The tables of docs/reproduction.md: each study's experiments beside its published figures, and every run
that they count."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from fastbn.experiments.preset import Figure, Line, Preset
from fastbn.experiments.presets import PRESETS
from fastbn.experiments.records import Run, runs_of
from fastbn.experiments.table import WHAT

COLUMNS = ("line", "figure", "n", "ours, %", "published, %", "difference", "in the published range", "state")
RUN_COLUMNS = ("run", "epochs", "accuracy, %", "training, s", "images/s", "machine", "engine", "record")


def studies(runs: Sequence[Run]) -> str:
    """Return a section for each study: a table of each experiment that has runs of its own, or all its lines.

    The other experiments are named below: not run, or of no line but those in a table above.
    """
    shown: set[Path] = set()
    parts = []
    for source in dict.fromkeys(one.source for one in PRESETS.values()):
        parts.append(f"## {source[0].upper()}{source[1:]}")
        lack = []
        for one in PRESETS.values():
            if one.source == source:
                runs_by_line = [(line, runs_of(one, line, runs)) for line in one.lines]
                places = {run.place for _, some in runs_by_line for run in some}
                if places - shown or all(some for _, some in runs_by_line):
                    parts.append(section(one, runs_by_line))
                    shown |= places
                else:
                    lack.append(f"`{one.name}`")
        if lack:
            parts.append(f"Not run, or no line but those in a table above: {', '.join(lack)}.")
    return "\n\n".join(parts)


def section(one: Preset, runs_by_line: Sequence[tuple[Line, Sequence[Run]]]) -> str:
    """Return an experiment's table; what it lacks is named below it."""
    rows = [row for line, some in runs_by_line if some for row in _rows(one, line, some)]
    parts = [f"### `{one.name}`: {one.title}", _table(COLUMNS, rows)]
    if one.mark:
        word = f"**{one.mark.capitalize()}, less than the study's: no difference is taken.**"
        parts.insert(1, f"{word} {one.states}")
    lack = ", ".join(line.name for line, some in runs_by_line if not some)
    return "\n\n".join([*parts, *([f"Not run: {lack}."] if lack else [])])


def ours(values: Sequence[float]) -> str:
    """Return the mean and the sample standard deviation, the mean alone of one value, a dash of none."""
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else "—"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def counted(runs: Sequence[Run]) -> dict[Path, tuple[str, Run]]:
    """Return the runs that a line of an experiment has, each once, named by the first such line."""
    named: dict[Path, tuple[str, Run]] = {}
    for one in PRESETS.values():
        for line in one.lines:
            for run in runs_of(one, line, runs):
                mark = f" ({one.mark})" if one.mark else ""
                named.setdefault(run.place, (f"{one.name}: {line.name}{mark}, seed {run.config.seed}", run))
    return named


def run_table(runs: Sequence[Run]) -> str:
    """Return a row for each finished run that is counted: how long it took, and on what."""
    return _table(RUN_COLUMNS, [_run_row(name, run) for name, run in counted(runs).values() if run.finished])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))


def _rows(one: Preset, line: Line, runs: Sequence[Run]) -> list[list[str]]:
    kinds = dict.fromkeys(["test_accuracy", *(figure.of for figure in line.published)])
    return [_row(one, line, kind, runs) for kind in kinds]


def _row(one: Preset, line: Line, kind: str, runs: Sequence[Run]) -> list[str]:
    values = [value for run in runs if run.finished and (value := run.figure(kind)) is not None]
    published = [figure for figure in line.published if figure.of == kind]
    texts = [f"{figure.value:g} ({figure.grade})" for figure in published]
    name, difference, spread = line.name, "—", "—"
    if one.mark:
        name = f"{line.name} ({one.mark})"
        texts += [f"of the whole, ours is {'' if one.mark == 'cut' else 'a '}{one.mark}"] if published else []
        difference = f"not taken: {one.mark}" if published else "—"
    elif values and published:
        mean = statistics.fmean(values)
        difference = "; ".join(f"{mean - figure.value:+.1f}" for figure in published)
        spread = _inside(mean, published)
    what, texts = WHAT.get(kind, kind), texts or ["—"]
    return [
        name,
        what,
        str(len(values)),
        ours(values),
        "; ".join(texts),
        difference,
        spread,
        _state(one, runs),
    ]


def _inside(value: float, published: Sequence[Figure]) -> str:
    """Return the range that two published figures of one line span; one figure has none."""
    low, high = (end(figure.value for figure in published) for end in (min, max))
    return "—" if low == high else f"{'inside' if low <= value <= high else 'outside'} {low:g} … {high:g}"


def _state(one: Preset, runs: Sequence[Run]) -> str:
    under_way = [
        f"seed {run.config.seed} under way, epoch {len(run.epochs)} of {run.config.epochs}"
        for run in runs
        if not run.finished
    ]
    return "; ".join([f"{sum(run.finished for run in runs)} of {one.seeds} done", *under_way])


def _run_row(name: str, run: Run) -> list[str]:
    summary, accuracy = run.summary, run.figure("test_accuracy")
    device = ", ".join(part for part in (summary["device"], summary.get("instructions")) if part)
    return [
        name,
        str(len(run.epochs)),
        "—" if accuracy is None else f"{accuracy:.2f}",
        f"{summary['training_seconds']:,.0f}",
        f"{summary['images_per_second']:,.0f}",
        device,
        f"{summary['engine']}, {run.config.precision}",
        f"`{run.place.name}`",
    ]
