"""One or several runs as one self-contained page."""

from __future__ import annotations

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
    found = subjects(runs)
    for subject in found:
        subject.affine  # noqa: B018 (what has no γ and β is told before any work)
    parts = [run_sections.result(found), run_sections.courses(found), run_sections.gamma_and_beta(found)]
    if tests is not None:
        parts += [
            network_sections.dead(found, tests),
            network_sections.features(found, tests, layer),
            network_sections.pruning(found, tests, thresholds),
        ]
    parts.append(run_sections.recipe(found))
    return page(_title(found), _lead(found, tests), parts)


def _title(found: Sequence[Subject]) -> str:
    networks = list(dict.fromkeys(s.run.network for s in found))
    return networks[0] if len(networks) == 1 else f"{len(found)} runs side by side"


def _lead(found: Sequence[Subject], tests: Sequence[Images] | None) -> str:
    said = []
    for s in found:
        own = s.run.summary
        said.append(
            f"{s.name[0].upper()}{s.name[1:]}: test accuracy {own['test_accuracy']:.4f} after "
            f"{own['epochs']} epochs."
        )
    if tests is None:
        said.append(f"Made without the test set, so without {', '.join(DATA)}.")
    return " ".join(said)
