"""python -m bench.record RUN …: keeps what runs reached, and under which conditions, as
bench/results/run-<name>-<date>.json.

A folder of runs may be given too. A run that is under way is copied to reproduction/ as it stands, from where
--resume continues it; the network of a finished BN-only run goes to pretrained/."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastbn import devices
from fastbn.errors import MachineError, UsageError
from fastbn.experiments.results import gammas

RESULTS = Path(__file__).parent / "results"
PATHS = ("out", "data_dir", "vectors", "weights")
BINS = (-1.0, 3.0, 0.05)  # of the histogram of γ: from, to, a bin's width


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


def record(run: Path, name: str | None = None, results: Path = RESULTS) -> Path:
    """Write a finished run's settings, summary, epochs and histogram of γ to run-<name>-<date>.json. No
    path of this machine is kept."""
    config, summary = (
        json.loads((run / f"{part}.json").read_text(encoding="utf-8")) for part in ("config", "summary")
    )
    folder = config.pop("data_dir")  # where this machine keeps its data is nobody's business
    summary["dataset_why"] = summary["dataset_why"].replace(folder, "data")
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in epochs[:-1]:
        line.pop("norms", None)  # a layer's γ and β by epoch are many KB
    body = {
        "config": relative(config, f"runs/{run.name}"),
        "summary": summary,
        "gammas": histogram(gammas(run)),
    }
    target = results / f"run-{name or run.name}-{summary['date']}.json"
    text = (
        json.dumps(body, indent=1)[:-2]
        + ',\n "epochs": [\n  '
        + ",\n  ".join(map(json.dumps, epochs))
        + "\n ]\n}\n"
    )
    target.write_text(text, encoding="utf-8")
    return target


def relative(config: dict[str, Any], out: str) -> dict[str, Any]:
    """Return a run's settings with no absolute path: its folder as `out`, a file by its name, the default
    folder of data."""
    instead = {"out": out, "data_dir": "data"}
    absolute = {
        name: str(value)
        for name, value in config.items()
        if name in PATHS and value and Path(value).is_absolute()
    }
    return config | {name: instead.get(name, Path(value).name) for name, value in absolute.items()}


def histogram(values: torch.Tensor) -> dict[str, Any]:
    """Count γ in bins of 0.05 between −1 and 3, those beyond in the outermost; {} of a network that has
    none."""
    if not len(values):
        return {}
    low, high, width = BINS
    places = ((values.double() - low) / width).floor().long().clamp(0, round((high - low) / width) - 1)
    counts = places.bincount(minlength=round((high - low) / width)).tolist()
    return {
        "low": low,
        "width": width,
        "counts": counts,
        "below_0.01": float((values.abs() < 0.01).double().mean()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep every run that is found below the given folders."""
    from bench.keep import PRETRAINED, UNDER_WAY, keep

    parser = argparse.ArgumentParser(
        "python -m bench.record", description=(__doc__ or "").split("\n")[0].split(": ", 1)[1]
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, or one that holds runs"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="of the records (bench/results)"
    )
    parser.add_argument(
        "--under-way",
        type=Path,
        default=UNDER_WAY,
        metavar="DIR",
        help="of runs that are not finished (reproduction)",
    )
    parser.add_argument(
        "--pretrained",
        type=Path,
        default=PRETRAINED,
        metavar="DIR",
        help="of finished BN-only networks (pretrained)",
    )
    asked = parser.parse_args(arguments)
    try:
        for line in keep(asked.runs, asked.results, asked.under_way, asked.pretrained):
            print(line)
    except (UsageError, MachineError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
