"""The conditions of a measurement, and how a record is written: whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from fastbn import files
from fastbn.machine import devices

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
SETTINGS = {"driver": "driver_version", "sm_clock": "clocks.sm", "most_sm_clock": "clocks.max.sm",
            "power_limit": "power.limit"}  # fmt: skip


def conditions(device: torch.device | None = None) -> dict[str, Any]:
    """Return the conditions of what is measured now: device, versions, commit, date.

    The device is this machine's CPU where none is named; of a GPU the driver, the clocks (MHz) and the power
    limit are told too, by nvidia-smi. COMMIT in the environment stands in where git is not there."""
    device = device or torch.device("cpu")
    found: dict[str, Any] = {"device": devices.describe(device), "versions": devices.versions()}
    if device.type == "cuda":
        found["versions"] |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
        query = f"--query-gpu={','.join(SETTINGS.values())}"
        said = _said("nvidia-smi", f"--id={device.index or 0}", query, "--format=csv,noheader")
        found |= dict(zip(SETTINGS, said.split(", "), strict=False))
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found["versions"]["triton"] = importlib.metadata.version("triton")
    commit = _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or os.environ.get("COMMIT")
    return found | {"commit": commit or "unknown", "date": time.strftime("%Y-%m-%d")}


def in_words(found: dict[str, Any], *only: str) -> list[str]:
    """Return the device, the versions (all, or those named), the commit and the date of a measurement in
    words; what its record does not hold is left out."""
    known = found.get("versions") or {}
    versions = ", ".join(f"{name} {known[name]}" for name in only or known if name in known)
    commit = f"commit {found['commit']}" if found.get("commit") else None
    parts = (found.get("device"), versions, commit, found.get("date"))
    return [str(part) for part in parts if part]


def _said(*command: str) -> str:
    """Return what a command prints; nothing where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def write(path: Path, body: dict[str, Any]) -> None:
    """Write a record as JSON, in place of what was there. A number that is not finite becomes its name."""
    text = json.dumps(_finite(body), indent=1, ensure_ascii=False, allow_nan=False)
    files.write(path, f"{text}\n".encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(own) for own in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
