"""python -m bench.guard: fails where fastbn's training step is no longer as much faster than the best of
stock as bench/floors.json says.

Both are measured here and now, in turn, so that the machine hardly matters. Another process can: a first
verdict that is a fail is measured again with three times the rounds, and the second counts. Exit code 1, with
one line, for a fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench.suite import measure
from bench.suite.cases import Case
from bench.suite.providers import few, likely_best, providers
from fastbn.devices import choose_device
from fastbn.engine.select import choose

FLOORS = Path(__file__).with_name("floors.json")
ROUNDS = (9, 27)  # of the first verdict, and of the second


class Slow(Exception):
    """fastbn is too slow, or wrong, or nothing to compare it with could run."""


def check(case: Case, floor: float, device: torch.device, rounds: tuple[int, ...] = ROUNDS) -> str:
    """What was found. Raises Slow where the last verdict is a fail."""
    said = ""
    for n in rounds:
        rows = [
            own.row
            for own in measure.steps(
                "step", case, few(providers(case, device), likely_best(device)), device, n
            ).values()
        ]
        ours = [row for row in rows if row.provider.startswith("fastbn") and row.seconds]
        stock = measure.best(rows)
        if not ours or stock is None:
            raise Slow(
                f"{case.title}: " + "; ".join(f"{row.provider}: {row.failed}" for row in rows if row.failed)
            )
        own = min(ours, key=lambda row: row.seconds or 0.0)
        assert own.seconds and stock.seconds
        ratio = stock.seconds / own.seconds
        said = (
            f"{case.title}: {own.provider} {1e3 * own.seconds:.1f} ms, best of stock "
            f"{1e3 * stock.seconds:.1f} ms ({stock.provider}): "
            f"{ratio:.2f}×, floor {floor:.2f}×, {n} rounds"
        )
        if ratio >= floor:
            return said
        if n != rounds[-1]:
            print(f"guard: measured again, with {rounds[-1]} rounds: {said}", file=sys.stderr)
    raise Slow(said)


def main(floors: Path = FLOORS, rounds: tuple[int, ...] = ROUNDS) -> int:
    device = choose_device("auto")
    engine, why = choose("auto", device, torch.float32)
    assert engine is not None
    kept: list[dict[str, Any]] = json.loads(floors.read_text(encoding="utf-8")).get(engine.name, [])
    if not kept:
        print(f"guard: {floors.name} keeps no floor for the {engine.name} engine ({why}): nothing to hold")
    for entry in kept:
        settings = dict(entry)
        floor = settings.pop("floor")
        try:
            print(f"guard: {check(Case(**settings), floor, device, rounds)}")
        except Slow as slow:
            print(
                f"guard failed: {slow}; find what slowed it down, or lower the floor in bench/{floors.name} "
                "and say why",
                file=sys.stderr,
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
