"""python -m bench.record RUN …: keeps what a run reached, and under which conditions, as
bench/results/run-<name>-<date>.json.

    python -m bench.record --together NAME RUN …     # runs that differ by seed or machine, in one runs-<NAME>-<date>.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastbn import devices
from fastbn.errors import UsageError

RESULTS = Path(__file__).parent / "results"
# settings in which runs of one record may differ; where they ran is in their summaries
APART = ("seed", "out", "threads")


def conditions(device: torch.device | None = None) -> dict[str, Any]:
    """Under which a measurement is taken now, on this machine's CPU where no device is named: device,
    versions, commit, date; of a GPU the driver, the clocks (MHz) and the power limit too, as nvidia-smi tells
    them."""
    device = device or torch.device("cpu")
    commit = _said("git", "-C", str(RESULTS), "rev-parse", "--short", "HEAD")
    found: dict[str, Any] = {"device": devices.describe(device), "versions": devices.versions()}
    if device.type == "cuda":
        found["versions"] |= {
            "cuda": torch.version.cuda,
            "cudnn": str(torch.backends.cudnn.version()),
            "triton": _triton(),
        }
        asked = {
            "driver": "driver_version",
            "sm_clock": "clocks.sm",
            "most_sm_clock": "clocks.max.sm",
            "power_limit": "power.limit",
        }
        said = _said(
            "nvidia-smi",
            f"--id={device.index or 0}",
            f"--query-gpu={','.join(asked.values())}",
            "--format=csv,noheader",
        )
        found |= dict(zip(asked, said.split(", "), strict=False))
    return found | {"commit": commit or "unknown", "date": time.strftime("%Y-%m-%d")}


def _said(*command: str) -> str:
    """What a command prints; nothing where it is not there."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def record(run: Path) -> Path:
    """The run's settings, summary and epochs in one file."""
    found = _read(run)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return _kept(
        f"run-{run.name}", found["summary"]["date"], found | {"epochs": [json.loads(line) for line in lines]}
    )


def together(name: str, runs: Sequence[Path]) -> Path:
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
    return _kept(f"runs-{name}", date, {"config": configs[0], "date": date, "devices": rows, "all": every})


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


def _kept(name: str, date: str, body: dict[str, Any]) -> Path:
    target = RESULTS / f"{name}-{date}.json"
    target.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return target


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.record", description="Keeps what runs reached, in bench/results/."
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of python -m fastbn.train")
    parser.add_argument(
        "--together", metavar="NAME", help="one record of all, which differ by seed or machine"
    )
    asked = parser.parse_args(arguments)
    try:
        for path in [together(asked.together, asked.runs)] if asked.together else map(record, asked.runs):
            print(path)
    except (UsageError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
