"""The figures of docs/reproduction.md: a chart of what is on record now, and a caption that names what is
missing."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from fastbn.experiments.paper import ALL, BN, BN_OTHER_INIT, DEPTHS
from fastbn.experiments.presets import PRESETS
from fastbn.experiments.records import Run, runs_of
from fastbn.experiments.wandb.presets import BATCHES, BY_BATCH
from fastbn.page.charts import Bar, ChartValue, Series, bars, histogram, lines
from fastbn.page.page import Html
from fastbn.page.scales import number

ACCURACY = "test accuracy, %"


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure: the name of its file, its title, the chart, and what is said below it."""

    name: str
    title: str
    chart: Html
    caption: str


def drawings(runs: Sequence[Run]) -> list[Drawing]:
    """Return every figure, drawn from the finished ones of these runs."""
    done = [run for run in runs if run.finished]
    return [by_depth(done), by_batch(done), three_places(done), to_accuracy(done), gammas(done)]


def finished(preset: str, line: str, runs: Iterable[Run]) -> list[Run]:
    """Return the runs of a preset's line, by their names."""
    chosen = PRESETS[preset]
    return runs_of(chosen, next(one for one in chosen.lines if one.name == line), list(runs))


def mean(runs: Sequence[Run]) -> float:
    """Return the mean test accuracy of these runs in percent, of those that have one."""
    return statistics.fmean(value for run in runs if (value := run.figure("test_accuracy")) is not None)


def by_depth(runs: Sequence[Run]) -> Drawing:
    """Draw accuracy by depth, beside the paper's."""
    series = [
        Series("paper, everything trained", [*zip(DEPTHS, ALL, strict=True)], 5, 1),
        Series("paper, BatchNorm only", [*zip(DEPTHS, BN, strict=True)], 0, 0),
        Series(
            "paper, BatchNorm only, another initialisation", [*zip(DEPTHS, BN_OTHER_INIT, strict=True)], 2, 2
        ),
    ]
    said = []
    for train, kind, look in (("all", 4, 3), ("bn", 1, 4)):
        by_line = {depth: finished("paper-depth", f"{depth} {train}", runs) for depth in DEPTHS}
        points = [(float(depth), mean(some)) for depth, some in by_line.items() if some]
        series.append(
            Series(f"ours, {'everything' if train == 'all' else 'BatchNorm only'}", points, kind, look)
        )
        said.append(f"{train}: {_there(by_line)}")
    chart = lines("Accuracy by depth", series, "depth", ACCURACY, log=True, log_y=False)
    caption = (
        "The paper's figures are read off its own, ±0.5 (depth 866 is printed). Ours, mean of the seeds: "
    )
    caption += f"{'; '.join(said)}."
    return Drawing("accuracy-by-depth", "Accuracy by depth, beside the paper's", chart, caption)


def by_batch(runs: Sequence[Run]) -> Drawing:
    """Draw accuracy by batch size, beside the W&B report's."""
    by_line = {batch: finished("wandb-batch-size", f"bn batch {batch}", runs) for batch in BATCHES}
    points = [(float(batch), mean(some)) for batch, some in by_line.items() if some]
    series = [
        Series("W&B report", [*zip(BATCHES, BY_BATCH, strict=True)], 0, 0),
        Series("ours", points, 1, 1),
    ]
    chart = lines(
        "BatchNorm only, accuracy by batch size", series, "batch size", ACCURACY, log=True, log_y=False
    )
    caption = f"BatchNorm only, 75 epochs of Adam; the report has one seed. Ours: {_there(by_line)}."
    return Drawing("accuracy-by-batch", "Accuracy by batch size, beside the report's", chart, caption)


PLACES = {
    "bn": "BatchNorm",
    "random=2": "two random weights a channel",
    "output": "the output layer",
    "none": "nothing",
}


def three_places(runs: Sequence[Run]) -> Drawing:
    """Draw our own result: where about as many parameters train."""
    by_line = {train: finished("trained-parameters", train, runs) for train in PLACES}
    rows = []
    for i, (train, some) in enumerate(by_line.items()):
        values = [value for run in some if (value := run.figure("test_accuracy")) is not None]
        if values:
            count = some[0].summary["trained_parameters"]
            rows.append(
                Bar(f"{PLACES[train]}: {count:,} parameters, n = {len(values)}", [_interval(values)], i)
            )
    chart = bars("ResNet-14, accuracy by what trains", rows, "%", rule=10.0)
    caption = "ResNet-14 on CIFAR-10, 160 epochs; the rule is chance, a whisker spans the seeds. " + _gaps(
        by_line
    )
    return Drawing("trained-parameters", "About as many trained parameters in three places", chart, caption)


def to_accuracy(runs: Sequence[Run]) -> Drawing:
    """Draw the best accuracy so far by epoch: read across for the epochs that an accuracy takes."""
    modes = {"14 all": "everything", "14 bn": "BatchNorm", "14 random=2": "two random weights a channel"}
    by_line = {name: finished("paper-depth", name, runs) for name in modes}
    by_line["14 output"] = finished("paper-what-trains", "14 output", runs)
    series = []
    for i, (name, some) in enumerate(by_line.items()):
        if some:
            most, points = 0.0, []
            for line in some[0].epochs:
                if 100 * line["test_accuracy"] > most or line is some[0].epochs[-1]:
                    most = max(most, 100 * line["test_accuracy"])
                    points.append((line["epoch"] + 1.0, most))
            label = f"{modes.get(name, 'the output layer')}, seed {some[0].config.seed}"
            series.append(Series(label, points, i, i, marked=False))
    said = "; ".join(f"{s.name}: {number(s.points[-1][1])} at the end" for s in series)
    chart = lines("ResNet-14, best test accuracy so far by epoch", series, "epoch", ACCURACY, said=said)
    caption = "The best test accuracy so far, of one seed each. " + _gaps(by_line)
    return Drawing("epochs-to-accuracy", "Epochs to an accuracy, at depth 14", chart, caption)


def gammas(runs: Sequence[Run]) -> Drawing:
    """Draw the histogram of γ after training, at depth 14."""
    by_line = {name: finished("paper-depth", f"14 {name}", runs) for name in ("bn", "all")}
    heights, edges = [], list[float]()
    for i, (name, some) in enumerate(by_line.items()):
        counted = [run.gammas for run in some if run.gammas]
        if counted:
            low, width = counted[0]["low"], counted[0]["width"]
            total = [sum(column) for column in zip(*(one["counts"] for one in counted), strict=True)]
            edges = [round(low + k * width, 6) for k in range(len(total) + 1)]
            share = [100 * count / sum(total) for count in total]
            heights.append(
                (f"{'BatchNorm only' if name == 'bn' else 'everything'}, n = {len(counted)}", i, share)
            )
    chart = histogram("γ of ResNet-14 after training", edges, heights, "γ", "share of all γ, %")
    caption = "Before training γ is uniform in [0, 1); the outermost bins hold what lies beyond. " + _gaps(
        by_line
    )
    return Drawing("gammas", "γ after training, at depth 14", chart, caption)


def _interval(values: Sequence[float]) -> ChartValue:
    return (
        ChartValue(statistics.fmean(values), min(values), max(values))
        if len(values) > 1
        else ChartValue(values[0])
    )


def _there(by_line: dict[int, list[Run]]) -> str:
    have = ", ".join(f"{name} (n = {len(some)})" for name, some in by_line.items() if some)
    lack = ", ".join(str(name) for name, some in by_line.items() if not some)
    return f"{have or 'none yet'}" + (f", not finished: {lack}" if lack and have else "")


def _gaps(by_line: dict[str, list[Run]]) -> str:
    lack = ", ".join(name for name, some in by_line.items() if not some)
    return f"Not finished: {lack}." if lack else "Nothing is missing."
