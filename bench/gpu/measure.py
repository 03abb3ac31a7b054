"""What the stages of bench.gpu share: records written as they grow, clocks, the device's own rates, the
conditions."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench.suite.clock import kernel_seconds
from fastbn import devices
from fastbn.engine.select import capability

ROOT = Path(__file__).parents[2]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CAPABILITY = capability(DEVICE)
Call = Callable[[], Any]
LATE = "no time was left for it"


class Sink:
    """A stage's record, in its file after every row: a stage that is killed loses the row it was at."""

    def __init__(self, out: Path, name: str, resume: bool = False, **head: Any):
        """resume: with the rows that it has already, but for those that there was no time for."""
        self.path = out / f"{name}.json"
        out.mkdir(parents=True, exist_ok=True)
        before = (
            json.loads(self.path.read_text(encoding="utf-8"))["rows"] if resume and self.path.exists() else []
        )
        rows = [row for row in before if "untimed" not in row and row.get("skipped") != LATE]
        self.record: dict[str, Any] = {
            "stage": name,
            **conditions(),
            **head,
            "finished": False,
            "left_out": [],
            "rows": rows,
        }
        self.write()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.record["rows"]

    def add(self, **row: Any) -> dict[str, Any]:
        self.rows.append(row)
        self.write()
        print(
            " ".join(
                f"{key}={_short(value)}" for key, value in row.items() if not isinstance(value, (list, dict))
            ),
            flush=True,
        )
        return row

    def leave_out(self, what: str) -> None:
        """Says, in the record too, what was asked for and is not measured, and why."""
        self.record["left_out"].append(what)
        self.write()
        print(f"left out: {what}", flush=True)

    def finish(self, **tail: Any) -> None:
        self.record |= {**tail, "finished": True}
        self.write()

    def write(self) -> None:
        write(self.path, self.record)


def write(path: Path, record: dict[str, Any]) -> None:
    """Whole or not at all. A number that is not finite becomes its name: JSON has none."""
    part = path.with_suffix(".part")
    part.write_text(
        json.dumps(_plain(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    os.replace(part, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def conditions() -> dict[str, Any]:
    """Under which something is measured now: device, driver, versions, commit, date."""
    found: dict[str, Any] = {"device": devices.describe(DEVICE), "versions": devices.versions()}
    if DEVICE.type == "cuda":
        query = (
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.max.sm,power.limit",
            "--format=csv,noheader",
        )
        found["driver"] = _said(*query) or "unknown"
        found["versions"] |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    try:
        import triton

        found["versions"]["triton"] = triton.__version__
    except ImportError:
        found["versions"]["triton"] = None
    commit = _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    return found | {
        "commit": commit or os.environ.get("COMMIT", "unknown"),
        "date": time.strftime("%Y-%m-%d"),
    }


def _said(*command: str) -> str:
    """What a command prints; nothing where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def spread(seconds: Sequence[float], unit: float = 1.0) -> dict[str, float]:
    """Median and quartiles, in units of `unit` seconds."""
    low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    return {
        "median": middle / unit,
        "quartile_1": low / unit,
        "quartile_3": high / unit,
        "rounds": len(seconds),
    }


def repeated(calls: Sequence[Call], keep: bool) -> Call:
    """All calls in turn, as one: on CUDA a graph, so that no launch waits for the host. keep: no result's
    memory is used twice."""

    def run() -> list[Any]:
        kept = []
        for call in calls:
            found = call()
            if keep:
                kept.append(found)
        return kept

    if DEVICE.type != "cuda":
        run()
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # compiles, and makes what an engine keeps a stream, outside of the capture
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        kept = run()

    def replay() -> Any:
        graph.replay()
        return kept  # alive for as long as the graph writes there

    return replay


def device_seconds(call: Call) -> float:
    """Of one call, by CUDA events; by the host's clock where there is no GPU."""
    return kernel_seconds(call, DEVICE)


def rates(small: bool, dtype: torch.dtype) -> dict[str, float]:
    """The bytes a second of a large copy (read and written), and the FLOP/s of a large matrix product in
    this precision."""
    n, side = (1 << 20, 128) if small else (1 << 30, 8192)
    source = torch.ones(n, dtype=torch.uint8, device=DEVICE)
    target, a = torch.empty_like(source), torch.randn(side, side, device=DEVICE).to(dtype)
    for call in (lambda: target.copy_(source), lambda: a @ a):
        device_seconds(call)
    copy = min(device_seconds(lambda: target.copy_(source)) for _ in range(10))
    product = min(device_seconds(lambda: a @ a) for _ in range(10))
    return {"copy_bytes_per_second": 2 * n / copy, "matmul_flops": 2 * side**3 / product}


def failure(error: Exception) -> str:
    """An exception in a line of a record."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:300]


def free() -> None:
    """Gives back what no tensor holds any more."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def import_tests() -> None:
    """Makes the tests' own helpers importable: what is measured here is held to what is tested there."""
    folder = str(ROOT / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)


@contextlib.contextmanager
def begun_early(early: bool) -> Iterator[None]:
    """Inside, the engine's kernels begin before the one before them has ended
    (kernels/triton/early_launch.py) where they can, or none does."""
    from fastbn.engine.triton import tuning_table

    with mock.patch.object(
        tuning_table, "dependent", lambda device: early and device >= tuning_table.DEPENDENT
    ):
        yield


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm-wise, in float64."""
    wide = expected.double()
    return ((found.double() - wide).norm() / wide.norm()).item()
