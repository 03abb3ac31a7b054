"""Runs of the trainer as records: bench/results/run-<name>-<date>.json, with no path of this machine; those
that differ by seed or machine in one, runs-<name>-<date>.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.records.conditions import RESULTS, write
from fastbn import files
from fastbn.data.names import DEFAULT_DIR
from fastbn.errors import UsageError
from fastbn.experiments.results import gammas

PATHS = ("out", "data_dir", "vectors", "weights")
BINS = (-1.0, 3.0, 0.05)  # of the histogram of γ: from, to, a bin's width
# settings in which runs of one record may differ; where they ran is in their summaries
APART = ("seed", "out", "threads")


def record(run: Path, name: str | None = None, results: Path = RESULTS) -> Path:
    """Write a finished run's settings, summary, histogram of γ and epochs to run-<name>-<date>.json."""
    config, summary = ended(run)
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in epochs[:-1]:
        line.pop("norms", None)  # a layer's γ and β by epoch are many KB
    config = relative(config, f"runs/{run.name}")
    head = json.dumps({"config": config, "summary": summary, "gammas": histogram(gammas(run))}, indent=1)
    lines = ",\n  ".join(map(json.dumps, epochs))
    target = results / f"run-{name or run.name}-{summary['date']}.json"
    files.write(target, f'{head[:-2]},\n "epochs": [\n  {lines}\n ]\n}}\n'.encode())
    return target


def ended(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a finished run's settings and summary, without where this machine keeps its data."""
    parts = [(run / f"{part}.json").read_text(encoding="utf-8") for part in ("config", "summary")]
    config, summary = map(json.loads, parts)
    summary["dataset_why"] = summary["dataset_why"].replace(config.pop("data_dir"), "data")
    return config, summary


def relative(config: dict[str, Any], out: str) -> dict[str, Any]:
    """Return a run's settings with no absolute path: its folder becomes `out`, that of its data the default
    one. A file becomes its name."""
    instead = {"out": out, "data_dir": DEFAULT_DIR}
    absolute = [name for name in PATHS if config.get(name) and Path(config[name]).is_absolute()]
    return config | {name: instead.get(name, Path(config[name]).name) for name in absolute}


def histogram(values: torch.Tensor) -> dict[str, Any]:
    """Count γ in BINS, those beyond in the outermost; {} of a network that has none."""
    if not len(values):
        return {}
    low, high, width = BINS
    places = ((values.double() - low) / width).floor().long().clamp(0, round((high - low) / width) - 1)
    counts = places.bincount(minlength=round((high - low) / width)).tolist()
    small = float((values.abs() < 0.01).double().mean())
    return {"low": low, "width": width, "counts": counts, "below_0.01": small}


def together(name: str, runs: Sequence[Path], results: Path) -> Path:
    """Write the runs' settings once; per device the accuracies, by seed, with their mean and standard
    deviation; and those of all runs. Raises UsageError where the runs differ in more than seed and machine.
    """
    found = [ended(run) for run in runs]
    configs = [{key: value for key, value in config.items() if key not in APART} for config, _ in found]
    if differing := sorted({key for own in configs for key in own if own[key] != configs[0].get(key)}):
        raise UsageError(
            f"runs of one record differ by seed and machine alone, and these in {', '.join(differing)} too; "
            "record them apart"
        )
    rows = []
    for device in dict.fromkeys(summary["device"] for _, summary in found):
        own = [pair for pair in found if pair[1]["device"] == device]
        accuracies = {config["seed"]: summary["test_accuracy"] for config, summary in own}
        seconds = statistics.median(summary["seconds_of_this_process"] for _, summary in own)
        versions = own[0][1]["versions"]
        row = {"device": device, "versions": versions, "seconds": seconds, "accuracy_by_seed": accuracies}
        rows.append(row | _spread(accuracies.values()))
    every = _spread(summary["test_accuracy"] for _, summary in found)
    date = max(summary["date"] for _, summary in found)
    target = results / f"runs-{name}-{date}.json"
    write(target, {"config": configs[0], "date": date, "devices": rows, "all": every})
    return target


def _spread(accuracies: Iterable[float]) -> dict[str, float | None]:
    found = list(accuracies)
    deviation = statistics.stdev(found) if len(found) > 1 else None
    mean = statistics.fmean(found)
    return {"mean": mean, "standard_deviation": deviation, "least": min(found), "most": max(found)}
