"""python -m bench.record RUN …: keeps what runs reached as bench/results/run-<name>-<date>.json, conditions
included.

A folder of runs may be given too. A run that is under way is copied to reproduction/ as it stands, from where
--resume continues it; the network of a finished BN-only run goes to pretrained/. --together NAME: runs that
differ by seed or machine in one record.
"""

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
from fastbn.data.names import DEFAULT_DIR
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
    """Write a finished run's settings, summary, histogram of γ and epochs to run-<name>-<date>.json.

    No path of this machine is kept.
    """
    parts = [(run / f"{part}.json").read_text(encoding="utf-8") for part in ("config", "summary")]
    config, summary = map(json.loads, parts)
    folder = config.pop("data_dir")  # where this machine keeps its data is nobody's business
    summary["dataset_why"] = summary["dataset_why"].replace(folder, "data")
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in epochs[:-1]:
        line.pop("norms", None)  # a layer's γ and β by epoch are many KB
    config = relative(config, f"runs/{run.name}")
    head = json.dumps({"config": config, "summary": summary, "gammas": histogram(gammas(run))}, indent=1)
    lines = ",\n  ".join(map(json.dumps, epochs))
    target = results / f"run-{name or run.name}-{summary['date']}.json"
    target.write_text(f'{head[:-2]},\n "epochs": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
    return target


def relative(config: dict[str, Any], out: str) -> dict[str, Any]:
    """Return a run's settings with no absolute path: its folder becomes `out`, that of its data the default
    one.

    A file becomes its name.
    """
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep every run that is found below the given folders."""
    from bench.records.keep import PRETRAINED, UNDER_WAY, keep
    from bench.records.together import together

    parser = argparse.ArgumentParser("python -m bench.record", description="Keeps runs in the repository.")
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, or one that holds runs"
    )
    for flag, default, of in (
        ("--results", RESULTS, "the records"),
        ("--under-way", UNDER_WAY, "runs that are not finished"),
        ("--pretrained", PRETRAINED, "finished BN-only networks"),
    ):
        folder = "/".join(default.relative_to(RESULTS.parents[1]).parts)
        parser.add_argument(
            flag, type=Path, default=default, metavar="DIR", help=f"the folder of {of} ({folder})"
        )
    parser.add_argument(
        "--together", metavar="NAME", help="one record of all, which differ by seed or machine alone"
    )
    asked = parser.parse_args(arguments)
    try:
        if asked.together:
            print(together(asked.together, asked.runs, asked.results))
            return
        for line in keep(asked.runs, asked.results, asked.under_way, asked.pretrained):
            print(line)
    except (UsageError, MachineError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
