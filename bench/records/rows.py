"""What the benchmarks record: one row a provider and case, in long format, under bench/results/.

A file holds the conditions once (device, versions, commit, date, the machine's own rates) and its rows. Rows
of one (level, case) were measured side by side in one process, in turn: only they are compared."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bench.record import RESULTS, conditions

FORMAT = 1
LEVELS = ("kernel", "step", "run", "scaling", "memory")
# how the reason of a provider begins whose one step took so long that no more were asked for
HOPELESS = "not timed, hopeless"


@dataclasses.dataclass(kw_only=True)
class Row:
    """One provider's measurement of one case. What was not measured, or does not apply, is None."""

    level: str  # of LEVELS
    case: str  # what was done, the same for every provider beside it: "ResNet-32, 32×32, batch 128, fp32"
    provider: str  # "stock-full", "stock-full channels-last", "stock-bn compiled", "fastbn native", …
    trains: str  # "all" or "bn"; for a kernel "" (it is a part of both)
    # True: no room for all providers at once, so timed one after another and not in turn
    alone: bool | None = None
    failed: str | None = None  # why it has no figures: a wrong gradient, a recompile limit, out of memory
    depth: int | None = None
    family: str | None = None
    width: int | None = None
    size: int | None = None  # height and width of the images
    batch_size: int | None = None
    precision: str = "fp32"
    seconds: float | None = None  # median of n, with its quartiles
    q1: float | None = None
    q3: float | None = None
    n: int | None = None
    first_seconds: float | None = None  # of the first call: compiling, packing, allocating
    # norm-wise against float64, by the gate before the clock; of a kernel, of its results
    gradient_error: float | None = None
    peak_memory_bytes: int | None = None  # beyond the idle process on a CPU, of the allocator on a GPU
    saved_bytes: int | None = None  # kept for the backward
    launches: int | None = None  # a step's, as the graph counts them
    moved_bytes: int | None = None  # read and written, by the traffic model
    flops: int | None = None
    # the model's least time by this machine's own rates, over the time measured
    roofline_share: float | None = None
    energy_joules: float | None = None
    accuracy: float | None = None  # of a run, on its test set
    epochs: int | None = None

    @property
    def images_per_second(self) -> float | None:
        return self.batch_size / self.seconds if self.batch_size and self.seconds else None

    @property
    def hopeless(self) -> bool:
        """Whether it was let go after one step, as far too slow."""
        return self.failed is not None and self.failed.startswith(HOPELESS)


@dataclasses.dataclass(kw_only=True)
class Record:
    """A file of rows."""

    conditions: dict[str, Any]  # device, versions, commit, date
    machine: dict[str, float]  # copy_bytes_per_second, matmul_flops_per_second, measured in the same run
    rows: list[Row]

    def save(self, name: str, folder: Path = RESULTS) -> Path:
        """<folder>/<name>-<device>-<date>.json, written whole."""
        device = re.sub(r"[^a-z0-9]+", "-", str(self.conditions["device"]).lower()).strip("-")
        target = folder / f"{name}-{device}-{self.conditions['date']}.json"
        body = {
            "format": FORMAT,
            "conditions": self.conditions,
            "machine": self.machine,
            "rows": [_short(row) for row in self.rows],
        }
        part = target.with_suffix(".part")
        part.write_text(
            json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        part.replace(target)
        return target


def load(paths: Iterable[Path]) -> list[Record]:
    """The records in these files. Raises ValueError for one that is not of this format."""
    found = []
    for path in paths:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.get("format") != FORMAT:
            raise ValueError(
                f"{path}: not a benchmark record of format {FORMAT}; make one with pytest bench/ "
                "--benchmark-only"
            )
        found.append(
            Record(
                conditions=body["conditions"],
                machine=body["machine"],
                rows=[Row(**row) for row in body["rows"]],
            )
        )
    return found


def new(machine: dict[str, float], device: torch.device | None = None) -> Record:
    """An empty record of measurements that are taken now, on the CPU where no device is named."""
    return Record(conditions=conditions(device), machine=machine, rows=[])


def _short(row: Row) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(row).items() if value is not None}
