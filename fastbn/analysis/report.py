"""One or several runs as one self-contained page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from fastbn.analysis import network_sections, run_sections
from fastbn.analysis.runs import FinishedRun
from fastbn.analysis.subject import Subject, subjects
from fastbn.analysis.thresholds import THRESHOLDS
from fastbn.data.images import Images
from fastbn.page.page import page

DATA = ("dead features", "what the features see", "pruning")  # the sections that need images


def render(
    runs: Sequence[FinishedRun],
    tests: Sequence[Images] | None,
    layer: str | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> str:
    """Return the page of these runs. tests: a test set per group of runs (of `subjects`), or None: without
    the sections that need one. layer: the BatchNorm whose feature maps and most exciting images are shown,
    instead of the first and the last.

    Raises UsageError where a network has no γ and β, or no such layer.
    """
    all_subjects = subjects(runs)
    for subject in all_subjects:
        subject.affine  # noqa: B018 (what has no γ and β is told before any work)
    epochs = [run_sections.courses(all_subjects)] if any(run.lines for run in runs) else []
    parts = [run_sections.result(all_subjects), *epochs, run_sections.gamma_and_beta(all_subjects)]
    if tests is not None:
        parts += [
            network_sections.dead(all_subjects, tests),
            network_sections.features(all_subjects, tests, layer),
            network_sections.pruning(all_subjects, tests, thresholds),
        ]
    parts.append(run_sections.recipe(all_subjects))
    return page(_title(all_subjects), _lead(all_subjects, tests), parts)


def _title(subjects_shown: Sequence[Subject]) -> str:
    networks = list(dict.fromkeys(s.run.network for s in subjects_shown))
    return networks[0] if len(networks) == 1 else f"{len(subjects_shown)} runs side by side"


def _reached(subject: Subject) -> str:
    """Return what a group of runs reached: over several seeds, the mean and its deviation."""
    ended = [run.summary for run in subject.runs if run.summary]
    if not ended:
        return "a network without the epochs of its run"
    accuracies, epochs = [summary["test_accuracy"] for summary in ended], ended[0]["epochs"]
    if len(ended) == 1:
        return f"test accuracy {accuracies[0]:.4f} after {epochs} epochs"
    mean, deviation = statistics.fmean(accuracies), statistics.stdev(accuracies)
    return f"test accuracy {mean:.4f} ± {deviation:.4f} over {len(ended)} seeds after {epochs} epochs"


def _lead(subjects_shown: Sequence[Subject], tests: Sequence[Images] | None) -> str:
    said = []
    for s in subjects_shown:
        said.append(f"{s.name[0].upper()}{s.name[1:]}: {_reached(s)}.")
    if tests is None:
        said.append(f"Made without the test set, so without {', '.join(DATA)}.")
    return " ".join(said)
