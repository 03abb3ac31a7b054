"""python -m bench.record RUN: keeps what a run reached, and under which conditions, as
bench/results/run-<name>-<date>.json."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fastbn import devices

RESULTS = Path(__file__).parent / "results"


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
    found = {
        name: json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in ("config", "summary")
    }
    found["config"]["out"] = f"runs/{run.name}"
    folder = found["config"].pop("data_dir")  # where this machine keeps its data is nobody's business
    found["summary"]["dataset_why"] = found["summary"]["dataset_why"].replace(folder, "data")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    target = RESULTS / f"run-{run.name}-{found['summary']['date']}.json"
    target.write_text(
        json.dumps(found | {"epochs": [json.loads(line) for line in lines]}, indent=1) + "\n",
        encoding="utf-8",
    )
    return target


if __name__ == "__main__":
    for run in sys.argv[1:] or sys.exit(__doc__):
        print(record(Path(run)))
