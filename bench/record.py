"""python -m bench.record RUN: keeps what a run reached, and under which conditions, as bench/results/run-<name>-<date>.json."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fastbn.training import machine

RESULTS = Path(__file__).parent / "results"


def conditions() -> dict[str, Any]:
    """Under which a measurement is taken now on this machine's CPU: device, versions, commit, date."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS).stdout.strip()
    device, date = machine.describe(torch.device("cpu")), time.strftime("%Y-%m-%d")
    return {"device": device, "versions": machine.versions(), "commit": commit, "date": date}


def record(run: Path) -> Path:
    """The run's settings, summary and epochs in one file."""
    found = {name: json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in ("config", "summary")}
    folder = found["config"].pop("data_dir")  # where this machine keeps its data is nobody's business
    found["summary"]["dataset_why"] = found["summary"]["dataset_why"].replace(folder, "data")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    target = RESULTS / f"run-{run.name}-{found['summary']['date']}.json"
    target.write_text(json.dumps(found | {"epochs": [json.loads(line) for line in lines]}, indent=1) + "\n", encoding="utf-8")
    return target


if __name__ == "__main__":
    for run in sys.argv[1:] or sys.exit(__doc__):
        print(record(Path(run)))
