"""The table of pretrained/README.md, written between two markers from its networks and their runs'
records."""

from __future__ import annotations

from pathlib import Path

from bench.records import between
from bench.records.conditions import RESULTS
from fastbn.errors import UsageError
from fastbn.experiments.presets import PRESETS
from fastbn.experiments.records import SMALL_GAMMA, Run, read, run_of, runs_of
from fastbn.training import checked_file
from fastbn.training.checkpoint import CHECKPOINT

MARKERS = "<!-- networks -->", "<!-- /networks -->"
COLUMNS = ("network", "trained on", "recipe", "test accuracy", "published", "\\|γ\\| < 0.01", "file",
           "record")  # fmt: skip


def table(pretrained: Path, results: Path = RESULTS) -> str:
    """Return the table in Markdown."""
    runs = [run for run in read([results]) if run.finished]
    rows = [_row(path, found) for path, found in networks(pretrained, runs)]
    return between.table(COLUMNS, rows, "---")


def networks(pretrained: Path, runs: list[Run]) -> list[tuple[Path, Run]]:
    """Return the checkpoints in this folder, each with the run that is on record of it.

    Raises UsageError where none is.
    """
    found = []
    for path in sorted(pretrained.glob(f"*/{CHECKPOINT}")):
        asked = run_of(path, checked_file.read(path)[1]["config"])
        same = [run for run in runs if (run.identity, run.config.seed) == (asked.identity, asked.config.seed)]
        if not same:
            missing = "there is no record of a run with its settings and seed"
            raise UsageError(f"{path}: {missing}; make one with python -m bench.record RUN")
        found.append((path, same[0]))
    return found


def _row(path: Path, run: Run) -> list[str]:
    config, accuracy, small = run.config, run.figure("test_accuracy"), run.figure(SMALL_GAMMA)
    schedule = f", {config.schedule}"
    if config.schedule == "multistep":
        schedule = f" ÷10 at {', '.join(map(str, config.milestones or ()))}"
    recipe = f"{config.epochs} epochs, batch {config.batch_size}, {config.optimizer} {config.lr:g}{schedule}"
    return [
        f"`{path.parent.name}`",
        f"{config.dataset}, {run.summary['trained_parameters']:,} parameters",
        recipe,
        "—" if accuracy is None else f"{accuracy / 100:.4f}",
        _published(run),
        "—" if small is None else f"{small:.1f}%",
        f"{path.stat().st_size / 1000:.0f} KB",
        f"[`{run.place.name}`](../bench/results/{run.place.name})",
    ]


def _published(run: Run) -> str:
    """Return the first published accuracy of a line that this run is of, with the word where the run is less
    than the study's."""
    for preset in PRESETS.values():
        for line in preset.lines:
            figures = [figure for figure in line.published if figure.of == "test_accuracy"]
            if figures and runs_of(preset, line, [run]):
                mark = f"; here a {preset.mark}" if preset.mark else ""
                return f"{figures[0].value / 100:g} ({figures[0].grade}{mark})"
    return "—"
