"""python -m bench.guard: fails where fastbn's training step is no longer as much faster than the best of
stock as bench/floors.json says. --measure writes that file's floors anew from what is measured here.

Both are timed in turn, round after round, and what counts is the median over the rounds of their ratio: a
machine that slows down slows both within a round. Another process can still hit one of them: a first verdict
that is a fail is measured again with three times the rounds, and the second counts. Exit code 1, with one
line, for a fail.

A floor is 80% of the least ratio that is on record for its case, by device, with versions and date."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.records.conditions import conditions, write
from bench.records.rows import Record
from bench.report.compare import cases
from bench.suite import measure
from bench.suite.cases import Case
from bench.suite.providers import few, likely_best, providers
from fastbn.engine.select import choose
from fastbn.machine.devices import choose_device

FLOORS = Path(__file__).with_name("floors.json")
ROUNDS = (9, 27)  # of the first verdict, and of the second
SHARE = 0.8  # of what was measured: another run, another machine


class Slow(Exception):
    """fastbn is too slow, or wrong, or nothing to compare it with could run."""


class Lead(NamedTuple):
    """The lead of fastbn's step over the best of stock: a ratio per round."""

    ratios: list[float]
    said: str  # who took how long

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)


def lead(case: Case, device: torch.device, rounds: int) -> Lead:
    """Measure fastbn beside stock. Raises Slow where one of them has no figures."""
    everyone = few(providers(case, device), likely_best(device))
    found = measure.steps("guard", case, everyone, device, rounds)
    record = Record(conditions={}, machine={}, rows=[*found.values()])
    (beside,) = cases([record], "guard")
    ours, stock = beside.best("fastbn"), beside.best("stock")
    if ours is None or stock is None:
        failed = (f"{row.provider}: {row.failed}" for row in found.values() if row.failed)
        raise Slow(f"{case.title}: {'; '.join(failed)}")
    pairs = zip(stock.samples or [], ours.samples or [], strict=True)
    said = [f"{row.provider} {1e3 * (row.seconds or 0.0):.1f} ms" for row in (ours, stock)]
    ratios = [theirs / own for theirs, own in pairs]
    return Lead(ratios, f"{case.title}: {said[0]}, best of stock {said[1]}")


def check(case: Case, floor: float, device: torch.device, rounds: tuple[int, ...] = ROUNDS) -> str:
    """Return what was found. Raises Slow where the last verdict is a fail."""
    said = ""
    for n in rounds:
        found = lead(case, device, n)
        said = f"{found.said}: {found.median:.2f}×, floor {floor:.2f}×, {n} rounds"
        if found.median >= floor:
            return said
        if n != rounds[-1]:
            print(f"guard: measured again, with {rounds[-1]} rounds: {said}", file=sys.stderr)
    raise Slow(said)


def measured(entry: dict[str, Any], case: Case, device: torch.device, rounds: int) -> dict[str, Any]:
    """Return an entry of floors.json with this device's figure in it, and the floor that follows."""
    found = lead(case, device, rounds)
    low, _, high = statistics.quantiles(found.ratios, n=4, method="inclusive")
    figure = {"ratio": round(found.median, 3), "q1": round(low, 3), "q3": round(high, 3), "rounds": rounds}
    own = figure | conditions(device)
    others = [other for other in entry.get("measured", []) if other["device"] != own["device"]]
    figures = [*others, own]
    least = math.floor(100 * SHARE * min(each["ratio"] for each in figures)) / 100
    print(f"guard: {found.said}: {found.median:.2f}×, {rounds} rounds: floor {least:.2f}×")
    return {**entry, "floor": least, "measured": figures}


def main(
    arguments: Sequence[str] | None = None, floors: Path = FLOORS, rounds: tuple[int, ...] = ROUNDS
) -> int:
    """Hold every floor of this device's engine, or measure it; return the exit code."""
    parser = argparse.ArgumentParser("python -m bench.guard", description="Holds the floors of speed.")
    parser.add_argument("--measure", action="store_true", help="write bench/floors.json from this machine")
    asked = parser.parse_args(arguments)
    device = choose_device("auto")
    engine, why = choose("auto", device, torch.float32)
    assert engine is not None
    body: dict[str, Any] = json.loads(floors.read_text(encoding="utf-8"))
    kept: list[dict[str, Any]] = body.get(engine.name, [])
    if not kept:
        print(f"guard: {floors.name} keeps no floor for the {engine.name} engine ({why}): nothing to hold")
    for place, entry in enumerate(kept):
        case = Case(**{name: value for name, value in entry.items() if name not in ("floor", "measured")})
        try:
            if asked.measure:
                kept[place] = measured(entry, case, device, rounds[-1])
            else:
                print(f"guard: {check(case, entry['floor'], device, rounds)}")
        except Slow as slow:
            remedy = f"find what slowed it down, or lower the floor in bench/{floors.name} and say why"
            print(f"guard failed: {slow}; {remedy}", file=sys.stderr)
            return 1
    if asked.measure:
        write(floors, body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
