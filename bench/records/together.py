"""Runs that differ by seed or machine in one record: bench/results/runs-<name>-<date>.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastbn.errors import UsageError

# settings in which runs of one record may differ; where they ran is in their summaries
APART = ("seed", "out", "threads")


def together(name: str, runs: Sequence[Path], results: Path) -> Path:
    """The runs' settings once; of each device the accuracies, by seed, with their mean and standard
    deviation; and those of all runs. Raises UsageError where the runs differ in more than seed and machine.
    """
    found = [_read(run) for run in runs]
    configs = [{key: value for key, value in each["config"].items() if key not in APART} for each in found]
    if differing := sorted(
        {key for config in configs for key in config if config[key] != configs[0].get(key)}
    ):
        raise UsageError(
            f"runs of one record differ by seed and machine alone, and these in {', '.join(differing)} too; "
            "record them apart"
        )
    devices: dict[str, list[dict[str, Any]]] = {}
    for each in found:
        devices.setdefault(each["summary"]["device"], []).append(each)
    rows = []
    for device, own in devices.items():
        accuracies = {each["config"]["seed"]: each["summary"]["test_accuracy"] for each in own}
        seconds = statistics.median(each["summary"]["seconds_of_this_process"] for each in own)
        versions = own[0]["summary"]["versions"]
        row = {"device": device, "versions": versions, "seconds": seconds, "accuracy_by_seed": accuracies}
        rows.append(row | _spread(accuracies.values()))
    every = _spread(each["summary"]["test_accuracy"] for each in found)
    date = max(each["summary"]["date"] for each in found)
    target = results / f"runs-{name}-{date}.json"
    body = {"config": configs[0], "date": date, "devices": rows, "all": every}
    target.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return target


def _spread(accuracies: Iterable[float]) -> dict[str, float | None]:
    found = list(accuracies)
    deviation = statistics.stdev(found) if len(found) > 1 else None
    return {
        "mean": statistics.fmean(found),
        "standard_deviation": deviation,
        "least": min(found),
        "most": max(found),
    }


def _read(run: Path) -> dict[str, Any]:
    """A run's config and summary, without the folders of this machine."""
    found = {
        name: json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in ("config", "summary")
    }
    found["config"]["out"] = f"runs/{run.name}"
    folder = found["config"].pop("data_dir")  # where this machine keeps its data is nobody's business
    found["summary"]["dataset_why"] = found["summary"]["dataset_why"].replace(folder, "data")
    return found
