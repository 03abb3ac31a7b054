"""Runs that differ by seed or machine in one record: bench/results/runs-<name>-<date>.json."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.records.conditions import write
from bench.records.runs import ended
from fastbn.errors import UsageError

# settings in which runs of one record may differ; where they ran is in their summaries
APART = ("seed", "out", "threads")


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
    devices: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for config, summary in found:
        devices.setdefault(summary["device"], []).append((config, summary))
    rows = []
    for device, own in devices.items():
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
