"""The report's sections that a run's folder alone is enough for: result, curves, γ and β, recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastbn.analysis import affine
from fastbn.analysis.curves import AXES, Curve, curves
from fastbn.analysis.published import DISABLED, PAPER, published
from fastbn.analysis.runs import FinishedRun
from fastbn.analysis.subject import Subject, spread_out
from fastbn.page.charts import Series, histogram, lines, strips
from fastbn.page.page import (
    ABSENT,
    NOTHING,
    Html,
    figure,
    figures,
    heading,
    joined,
    listing,
    paragraph,
    section,
    table,
)
from fastbn.page.scales import number
from fastbn.training.affine_statistics import SMALL

SYMBOLS = {"gamma": "γ", "beta": "β"}
ROWS = 24  # layers that a chart or a table shows
METRICS = {
    "test_accuracy": "accuracy on the test set",
    "train_accuracy": "accuracy in training",
    "test_loss": "loss on the test set",
}
X = {"epochs": "epochs", "seconds": "seconds of training", "joules": "joules of the GPU"}


def result(subjects: Sequence[Subject]) -> Html:
    """Return the section of what each run reached and took, the means over seeds, and the published
    figures."""
    header = [
        "run",
        "test accuracy",
        "test loss",
        "training accuracy",
        "epochs",
        "seconds",
        "images/s",
        "peak memory",
        "joules",
        "trained",
    ]
    rows = []
    counted = {"parameters", "trained_parameters"}
    for subject in subjects:
        for run in subject.runs:
            last, summary = (run.lines or [{}])[-1], run.summary
            joules = [line.get("energy_joules") for line in run.lines] or [None]
            rows.append(
                [
                    f"{subject.name}, seed {run.config['seed']}",
                    f"{last['test_accuracy']:.4f}" if last else ABSENT,
                    number(last["test_loss"]) if "test_loss" in last else ABSENT,
                    f"{last['train_accuracy']:.4f}" if last else ABSENT,
                    str(summary.get("epochs", ABSENT)),
                    number(sum(line["seconds"] for line in run.lines)) if last else ABSENT,
                    number(summary["images_per_second"]) if "images_per_second" in summary else ABSENT,
                    f"{summary['peak_memory_bytes'] / 1e6:,.0f} MB"
                    if "peak_memory_bytes" in summary
                    else ABSENT,
                    ABSENT if None in joules else number(sum(j for j in joules if j is not None)),
                    f"{summary['trained_parameters']:,} of {summary['parameters']:,}"
                    if counted <= summary.keys()
                    else ABSENT,
                ]
            )
    seeds = [
        [curve.name, str(curve.runs), f"{curve.mean[-1]:.4f} ± {curve.std[-1]:.4f}"]
        for curve in curves(_runs(subjects))
        if curve.runs > 1
    ]
    over = [heading("Over seeds"), table(["runs", "n", "test accuracy, mean ± std"], seeds)] if seeds else []
    return section("Result", table(header, rows), *over, _published(subjects))


def _published(subjects: Sequence[Subject]) -> Html:
    """Return what the paper reports of these networks, after 160 epochs of all of CIFAR-10."""
    said = []
    for s in subjects:
        known = published(s.run.config)
        if known is not None and s.run.summary:
            limit = s.run.config.get("limit_train")
            under = f"{s.run.summary['epochs']} epochs" + (f" of {limit:,} images" if limit else "")
            here = f"here {s.run.summary['test_accuracy']:.3f} after {under}"
            said.append(f"{s.run.network}, {s.name}: {known:.3f} after 160 epochs of 50,000 images; {here}")
    small = "; ".join(f"{affine.small_overall(s.affine):.3f} ({s.name})" for s in subjects)
    said.append(
        f"about a third ({DISABLED:.2f}) of all features end disabled, |γ| < {SMALL:g}, in BN-only "
        f"training; here {small}"
    )
    return joined([heading(f"Published ({PAPER})"), listing(said)])


def courses(subjects: Sequence[Subject]) -> Html:
    """Return the section of accuracy against each axis, loss against epochs."""
    drawn = []
    for metric, axis in [("test_accuracy", axis) for axis in AXES] + [
        ("train_accuracy", "epochs"),
        ("test_loss", "epochs"),
    ]:
        lone = [
            _series(curve, axis, i, METRICS[metric])
            for i, curve in enumerate(curves(_runs(subjects), metric))
        ]
        series = [one for one in lone if one is not None]
        title = f"{METRICS[metric].capitalize()} against {X[axis]}"
        drawn.append(figure(lines(title, series, X[axis], METRICS[metric]), title, _seeds(subjects)))
    return section("Curves", figures(drawn))


def _series(curve: Curve, axis: str, place: int, what: str) -> Series | None:
    x = curve.against(axis)
    if x is None:
        return None
    points = [*zip(x.tolist(), curve.mean.tolist(), strict=True)]
    band = (
        [(m - s, m + s) for m, s in zip(curve.mean.tolist(), curve.std.tolist(), strict=True)]
        if curve.runs > 1
        else []
    )
    return Series(curve.name, points, place % 6, place, marked=len(points) <= ROWS, band=band)


def _seeds(subjects: Sequence[Subject]) -> str:
    return (
        "Mean over the seeds, the band one standard deviation."
        if any(len(s.runs) > 1 for s in subjects)
        else ""
    )


def gamma_and_beta(subjects: Sequence[Subject]) -> Html:
    """Return the section of γ and β: shares of small ones, histograms by layer, and their courses over
    training."""
    parts = [_small_table(subjects)]
    parts.append(figures([_overall(subjects, which) for which in SYMBOLS] + [_small_by_depth(subjects)]))
    parts.append(heading("By layer"))
    parts.append(figures([_by_layer(subject, subjects, which) for which in SYMBOLS for subject in subjects]))
    moving = _trajectories(subjects)
    parts.append(joined([heading("Over training"), moving]) if moving else NOTHING)
    return section("BatchNorm: γ and β", *parts)


def _small_table(subjects: Sequence[Subject]) -> Html:
    thresholds = (SMALL, 0.05, 0.1)
    rows = []
    for s in subjects:
        gamma, beta = np.concatenate(s.affine.gamma), np.concatenate(s.affine.beta)
        shares = [f"{affine.small_overall(s.affine, t):.4f}" for t in thresholds]
        rows.append(
            [s.name, f"{len(gamma):,}", *shares, *(f"{v.mean():.3f} ± {v.std():.3f}" for v in (gamma, beta))]
        )
    said = (
        "Of each group of runs, the first is looked into. A channel counts as disabled where |γ| < "
        f"{SMALL:g}."
    )
    header = ["run", "channels", *(f"|γ| < {t:g}" for t in thresholds), "γ, mean ± std", "β, mean ± std"]
    return joined([paragraph(said, "note"), table(header, rows)])


def _overall(subjects: Sequence[Subject], which: str) -> Html:
    at = affine.edges([s.affine for s in subjects], which)
    heights = [(s.name, s.kind, affine.histogram(s.affine, which, at).shares.tolist()) for s in subjects]
    title = f"{SYMBOLS[which]} of all layers"
    return figure(histogram(title, at.tolist(), heights, SYMBOLS[which], "share of the channels"), title)


def _small_by_depth(subjects: Sequence[Subject]) -> Html:
    series = []
    for i, s in enumerate(subjects):
        shares = affine.small(s.affine).tolist()
        series.append(Series(s.name, [*enumerate(shares, 1)], s.kind, i, marked=len(shares) <= ROWS))
    title = f"Share of |γ| < {SMALL:g} by layer"
    return figure(
        lines(title, series, "BatchNorm, from the first to the last", "share of its channels"), title
    )


def _by_layer(subject: Subject, subjects: Sequence[Subject], which: str) -> Html:
    shares = affine.histogram(subject.affine, which, affine.edges([s.affine for s in subjects], which))
    chosen = spread_out(len(shares.names), ROWS)
    rows = [(shares.names[i], shares.layers[i].tolist()) for i in chosen]
    caption = "" if len(chosen) == len(shares.names) else f"{len(chosen)} of {len(shares.names)} layers. "
    title = f"{SYMBOLS[which]} by layer: {subject.name}"
    chart = strips(title, rows, shares.edges.tolist(), SYMBOLS[which], subject.kind)
    return figure(chart, title, f"{caption}Stronger colour: more of the layer's channels.")


def _trajectories(subjects: Sequence[Subject]) -> Html:
    """Return the courses of the runs that recorded them."""
    recorded = [s for s in subjects if s.run.lines and all(_recorded(line) for line in s.run.lines)]
    if not recorded:
        return NOTHING
    drawn = []
    for which in SYMBOLS:
        series = []
        for i, s in enumerate(recorded):
            mean, std = affine.overall(s.run.lines, s.affine, which)
            band = [(m - d, m + d) for m, d in zip(mean.tolist(), std.tolist(), strict=True)]
            series.append(
                Series(s.name, [*enumerate(mean.tolist(), 1)], s.kind, i, marked=len(mean) <= ROWS, band=band)
            )
        title = f"{SYMBOLS[which]} over training"
        chart = lines(title, series, "epochs", f"mean of {SYMBOLS[which]}")
        drawn.append(
            figure(chart, title, "Mean over all channels, the band one standard deviation of the channels.")
        )
    for s in recorded:
        std = affine.course(s.run.lines, "gamma_std")
        layers = spread_out(std.shape[1], 5)
        deviations = [(s.affine.names[at], [*enumerate(std[:, at].tolist(), 1)]) for at in layers]
        series = [
            Series(name, points, i, i, marked=len(std) <= ROWS) for i, (name, points) in enumerate(deviations)
        ]
        title = f"Deviation of γ by layer over training: {s.name}"
        drawn.append(figure(lines(title, series, "epochs", "standard deviation of γ"), title))
    return figures(drawn)


def _recorded(line: dict[str, Any]) -> bool:
    """Return whether an epoch's metrics have γ and β by layer."""
    return bool(line.get("norms", {}).get("gamma_mean"))


def recipe(subjects: Sequence[Subject]) -> Html:
    """Return the section of every setting and condition as a table by group of runs: first those in which
    groups differ, then those that all share; what all leave open is left out."""
    names = list(dict.fromkeys(name for s in subjects for name in s.run.config))
    skipped = ("out", "resume", "explain", "download", "data_dir", "track")
    rows = [
        [name.replace("_", " "), *(_said(s.run.config.get(name)) for s in subjects)]
        for name in names
        if name not in skipped
    ]
    for name in ("device", "engine_why", "versions", "date"):
        key = "machine" if name == "device" else name.replace("_", " ")
        rows.append([key, *(_said(s.run.summary.get(name)) for s in subjects)])
    kept = sorted((row for row in rows if set(row[1:]) != {ABSENT}), key=lambda row: len(set(row[1:])) == 1)
    return section("Recipe and machine", table(["setting", *(s.name for s in subjects)], kept))


def _said(value: object) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {setting}" for name, setting in value.items()) or ABSENT
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _runs(subjects: Sequence[Subject]) -> list[FinishedRun]:
    return [run for s in subjects for run in s.runs]
