"""The stages of bench.gpu share this: their records, written as they grow, and the device."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from bench.records.conditions import conditions, write
from bench.records.rows import FORMAT
from fastbn.engine.select import capability
from fastbn.errors import MachineError
from fastbn.planning import precision

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CAPABILITY = capability(DEVICE)
LATE, UNTIMED = "no time was left for it", "not timed yet"  # why rows have no figures yet


class Sink:
    """A stage's record, in its file after every row: a stage that is killed loses the row it was at."""

    def __init__(self, out: Path, name: str, resume: bool = False, **head: Any):
        """resume: with the rows that it has already, but for those that there was no time for."""
        self.path = out / f"{name}.json"
        out.mkdir(parents=True, exist_ok=True)
        there = resume and self.path.exists()
        self.before: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if there else {}
        kept = self.before.get("rows", [])
        self.rows = [row for row in kept if row.get("more", {}).get("skipped") not in (LATE, UNTIMED)]
        self.record: dict[str, Any] = {"format": FORMAT, "stage": name, "conditions": conditions(DEVICE)}
        self.record |= {"machine": {}, **head, "finished": False, "left_out": [], "rows": self.rows}
        self.write()

    def add(self, **row: Any) -> dict[str, Any]:
        """Add a row, and print what of it fits a line."""
        self.rows.append(row)
        self.write()
        plain = {key: value for key, value in row.items() if not isinstance(value, (list, dict))}
        print(" ".join(f"{key}={_short(value)}" for key, value in plain.items()), flush=True)
        return row

    def leave_out(self, what: str) -> None:
        """Say, in the record too, what was asked for and is not measured, and why."""
        self.record["left_out"].append(what)
        self.write()
        print(f"left out: {what}", flush=True)

    def finish(self, **tail: Any) -> None:
        self.record |= {**tail, "finished": True}
        self.write()

    def write(self) -> None:
        write(self.path, self.record)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def offers_mixed() -> bool:
    """Tell whether this version of fastbn has the precision called mixed on this device."""
    try:
        precision.check("mixed", DEVICE)
    except MachineError:
        return False
    return True


def engine(early: bool) -> Any:
    """Return the engine whose kernels begin before the one before them has ended
    (kernels/triton/early_launch.py) where they can, or of which none does."""
    from fastbn.engine.triton.engine import Triton
    from fastbn.engine.triton.tuning_table import shipped

    begin = frozenset({CAPABILITY} if early else ())
    return Triton(CAPABILITY, tuning=dataclasses.replace(shipped(), early=begin))
