"""Every benchmark records one row per provider and case, in long format, under bench/results/.

A file holds the conditions once (device, versions, commit, date, the machine's own rates) and its rows. Rows
of one (level, case) were measured side by side, in turn: only they are compared."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bench.records.conditions import RESULTS, conditions, write

FORMAT = 1
LEVELS = ("kernel", "step", "run", "scaling", "memory", "plan", "ranks", "xla", "patches")
LEVELS += ("adaptation", "example", "check")
SHAPE = ("depth", "family", "width", "size", "batch_size", "precision")  # what a row takes of its case
# how the reason of a provider begins whose one step took so long that no more were asked for
HOPELESS = "not timed, hopeless"


def quartiles(samples: Iterable[float]) -> dict[str, Any]:
    """Return a Row's seconds (the median), q1, q3 and n."""
    found = list(samples)
    q1, median, q3 = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    return {"seconds": median, "q1": q1, "q3": q3, "n": len(found)}


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
    more: dict[str, Any] | None = None  # what this level alone records
    # the seconds in the order in which they were taken; no record holds them
    samples: list[float] | None = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, level: str, case: Any, provider: str, trains: str = "bn", **more: Any) -> Row:
        """Return a provider's row of a case, nothing measured yet: its title, and what SHAPE names of it."""
        own = {name: getattr(case, name) for name in SHAPE if hasattr(case, name)}
        return cls(level=level, case=case.title, provider=provider, trains=trains, **own | more)

    @property
    def images_per_second(self) -> float | None:
        return self.batch_size / self.seconds if self.batch_size and self.seconds else None

    @property
    def hopeless(self) -> bool:
        """Return whether it was let go after one step, as far too slow."""
        return self.failed is not None and self.failed.startswith(HOPELESS)

    def time(self, samples: Iterable[float]) -> Row:
        """Take these seconds, their median, quartiles and number, and return the row."""
        self.samples = list(samples)
        for name, value in quartiles(self.samples).items():
            setattr(self, name, value)
        return self

    def told(self) -> dict[str, Any]:
        """Return what is known of it, as a record holds it."""
        own = dataclasses.asdict(dataclasses.replace(self, samples=None))
        return {name: value for name, value in own.items() if value is not None}


@dataclasses.dataclass(kw_only=True)
class Record:
    """A file of rows."""

    conditions: dict[str, Any]  # device, versions, commit, date
    machine: dict[str, float]  # copy_bytes_per_second, matmul_flops_per_second, measured in the same run
    rows: list[Row]

    def save(self, name: str, folder: Path = RESULTS) -> Path:
        """Write <folder>/<name>-<date>.json and return its path."""
        target = folder / f"{name}-{self.conditions['date']}.json"
        head = {"format": FORMAT, "conditions": self.conditions, "machine": self.machine}
        write(target, head | {"rows": [row.told() for row in self.rows]})
        return target

    @property
    def device(self) -> str:
        """Return the device as part of a file's name: "amd-epyc-avx-512-2-threads"."""
        return slug(self.conditions["device"])


def reason(error: Exception) -> str:
    """Return an exception as a record's line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]


def slug(text: object) -> str:
    """Return a text as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", str(text).lower()).strip("-")


def new(machine: dict[str, float] | None = None, device: torch.device | None = None) -> Record:
    """Return an empty record of what is measured now, on the CPU where no device is named."""
    return Record(conditions=conditions(device), machine=machine or {}, rows=[])


def load(paths: Iterable[Path]) -> list[Record]:
    """Return the records in these files, those from before format 1 too. Raises ValueError for another."""
    return [_record(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def _record(path: Path, body: dict[str, Any]) -> Record:
    if body.get("format") == FORMAT:
        rows = [Row(**row) for row in body["rows"]]
        return Record(conditions=body["conditions"], machine=body["machine"], rows=rows)
    if "format" in body or not {"device", "versions", "commit", "date", "rows"} <= body.keys():
        remedy = "make one with pytest bench/ --benchmark-only"
        raise ValueError(f"{path}: not a benchmark record of format {FORMAT}; {remedy}")
    head = {name: body[name] for name in ("device", "versions", "commit", "date")}
    rates = {"matmul_flops_per_second": body["matmul_flops"]} if "matmul_flops" in body else {}
    kind = "xla" if "-xla-" in path.name else path.name.partition("-")[0]
    return Record(conditions=head, machine=rates, rows=[_early(kind, body, row) for row in body["rows"]])


EARLY = {"stock, all": "stock-full", "stock, BN only": "stock-bn", ", channels-last, compiled": " compiled",
         ", channels-last": " channels-last"}  # providers' names before format 1  # fmt: skip
RENAMED = {"peak_less_idle_bytes": "peak_memory_bytes", "measured_bytes": "peak_memory_bytes",
           "batch": "batch_size"}  # fmt: skip


def _early(level: str, body: dict[str, Any], old: dict[str, Any]) -> Row:
    """Return a row of a record from before format 1, some of whose fields stand at the record's head."""
    known = {field.name for field in dataclasses.fields(Row)} - {"more", "samples"}
    old = {RENAMED.get(name, name): value for name, value in old.items()}
    own = {name: value for name, value in (body | old).items() if name in known}
    more = {name: value for name, value in old.items() if name not in known}
    provider = own.pop("provider", None) or old.get("plan") or f"{old.get('ranks')} ranks"
    for before, after in EARLY.items():
        provider = provider.replace(before, after)
    samples, case = own.pop("seconds", None), f"ResNet-{body['depth']}, batch {own['batch_size']}"
    trains = "all" if provider.startswith("stock-full") else "bn"
    row = Row(level=level, case=case, provider=provider, trains=trains, **own, more=more or None)
    if isinstance(samples, list):
        return row.time(samples)
    row.seconds = samples if samples is not None else more.get("ms_median", 0.0) / 1e3 or None
    return row
