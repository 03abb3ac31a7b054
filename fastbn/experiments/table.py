"""One table of an experiment: ours, mean ± standard deviation over the seeds, beside the published
figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from fastbn.experiments.preset import GRADES, Figure, Job, Line, Preset, Quick
from fastbn.experiments.results import Outcome, figure, outcome

CLOSE = 2.5  # points within which a figure counts as reproduced
WHAT = {
    "test_accuracy": "test accuracy",
    "train_accuracy": "training accuracy",
    "test_top5_accuracy": "top-5 test accuracy",
    "gamma_below_0.01": "γ below 0.01",
}
HEAD = "| line | figure, % | seeds | ours | published | difference |\n|---|---|---|---|---|---|"


def table(preset: Preset, jobs: Sequence[Job], quick: bool) -> str:
    """Return the table in Markdown. It works for what is there: runs that are not finished are counted, and
    the furthest is shown."""
    results = [(job, outcome(job)) for job in jobs]
    less = quick or bool(preset.mark)
    rows = [
        row
        for line in preset.cut(quick)
        for row in _rows(line, [pair for pair in results if pair[0].line.name == line.name], less)
    ]
    done = sum(result.state == "done" for _, result in results)
    title = f"# {preset.name}: {preset.title}\n\n{preset.source}. {done} of {len(results)} runs finished."
    if quick and isinstance(preset.quick, Quick):
        cut = ", ".join(
            f"{name} {value}" for name, value in preset.quick.settings.items() if value is not None
        )
        note = (
            f"**A quick cut ({cut}), not the experiment:** the published figures are of the whole, and "
            "no difference is taken."
        )
    elif preset.mark:
        note = (
            f"**{preset.mark.capitalize()}, less than the study's:** the published figures are of the "
            "whole, and no difference is taken."
        )
    else:
        grades = {published.grade for line in preset.lines for published in line.published}
        meanings = [f"*{grade}*: {meaning}." for grade, meaning in GRADES.items() if grade in grades]
        note = (
            " ".join([f"✓ within {CLOSE} points of the published figure, ✗ beyond.", *meanings])
            if grades
            else ""
        )
    return f"{title}\n\n{HEAD}\n" + "\n".join(rows) + (f"\n\n{note}\n" if note else "\n")


def _rows(line: Line, results: list[tuple[Job, Outcome]], less: bool) -> list[str]:
    """Return a row for each kind of figure that a line has published, one at least."""
    kinds = list(
        dict.fromkeys(
            [*(published.of for published in line.published), *([] if line.published else ["test_accuracy"])]
        )
    )
    if "test_accuracy" not in kinds and any("test_top5" in kind for kind in kinds):
        kinds = ["test_accuracy", *kinds]
    return [_row(line, kind, results, less) for kind in kinds]


def _row(line: Line, kind: str, results: list[tuple[Job, Outcome]], less: bool) -> str:
    finished = [figure(job, result, kind) for job, result in results if result.state == "done"]
    values = [value for value in finished if value is not None]
    published = [one for one in line.published if one.of == kind]
    texts = [f"{one.value:g} ({one.grade})" for one in published]
    seeds = f"{len(finished)} of {len(results)}"
    ours = _ours(values) if values else "not measured" if finished else _unfinished(results, kind)
    mark = "" if less or not values or not published else _difference(statistics.fmean(values), published[0])
    return (
        f"| {line.name} | {WHAT.get(kind, kind)} | {seeds} | {ours} | {'; '.join(texts) or '—'} | "
        f"{mark or '—'} |"
    )


def _ours(values: list[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


def _unfinished(results: list[tuple[Job, Outcome]], kind: str) -> str:
    """Return what there is to say of a line of which no run is finished."""
    failed = [result.error for _, result in results if result.state == "failed"]
    if failed:
        return f"failed: {failed[0]}"
    job, furthest = max(results, key=lambda pair: pair[1].epochs)
    if not furthest.epochs:
        return "begun" if furthest.state == "partial" else "—"
    so_far = f": {100 * furthest.last[kind]:.1f}" if kind in furthest.last else ""
    return f"(epoch {furthest.epochs} of {job.config.epochs or '?'}{so_far})"


def _difference(ours: float, published: Figure) -> str:
    by = ours - published.value
    return f"{'✓' if abs(by) <= CLOSE else '✗'} {by:+.1f}"
