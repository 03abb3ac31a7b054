"""Runs of the trainer as records: bench/results/run-<name>-<date>.json, with no path of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from bench.records.conditions import RESULTS
from fastbn import files
from fastbn.data.names import DEFAULT_DIR
from fastbn.experiments.results import gammas

PATHS = ("out", "data_dir", "vectors", "weights")
BINS = (-1.0, 3.0, 0.05)  # of the histogram of γ: from, to, a bin's width


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
