"""Fits the rates by which fastbn/planning/gain.py predicts a step, to recorded steps.

By instruction set: seconds = Σ work × rate, with rates ≥ 0 and the least squares of the relative errors, over
the stock and the fused steps together. Each rate is drawn to a usual one by `DRAWN`, so that a kind of work
that few networks have much of keeps a plausible rate."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.architectures.measure import FUSED, LAYOUTS
from bench.records.conditions import write
from fastbn.planning import gain

# seconds a unit: bytes at 50 and 25 GB/s, launches of 10 µs, a region's own 200 µs, 170, 50 and 14 GFLOP/s
SHARED = {"bytes": 2e-11, "far bytes": 4e-11, "launches": 1e-5, "regions": 2e-4}
PRODUCTS = {
    "1×1": 6e-12,
    "k×k": 6e-12,
    "Winograd": 6e-12,
    "not packed": 6e-12,
    "grouped": 2e-11,
    "depthwise": 7e-11,
}
SIDES = ("stock", "fused")
USUAL = SHARED | {gain.rate_of(kind, side): rate for side in SIDES for kind, rate in PRODUCTS.items()}
# the weight of a rate's relative distance from the usual one, against a step's relative error
DRAWN = 0.1


def write_rates(results: Path) -> None:
    """Write fastbn/planning/step_rates.json from the records of this folder."""
    by_set: dict[str, list[Mapping[str, Any]]] = {}
    said = {}
    for path in sorted(results.glob("architectures-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for row in record["rows"]:
            if "work" in row and "seconds" in row:
                by_set.setdefault(row["instructions"], []).append(row)
                said[row["instructions"]] = record["conditions"]
    write(gain.TABLE, {name: said[name] | _fitted(rows) for name, rows in sorted(by_set.items())})


def _fitted(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    works: list[Mapping[str, float]] = []
    seconds = []
    for row in rows:
        best = min(statistics.median(row["seconds"][name]) for name in LAYOUTS)
        for side, took in zip(SIDES, (best, statistics.median(row["seconds"][FUSED])), strict=True):
            works.append({gain.rate_of(kind, side): n for kind, n in row["work"][side].items()})
            seconds.append(took)
    return {"networks": len(rows), "rates": fit(works, seconds)}


def fit(works: Iterable[Mapping[str, float]], seconds: list[float]) -> dict[str, float]:
    """Return the rates, in seconds a unit of work, that make these seconds of these steps."""
    kinds = list(USUAL)
    usual = np.array([USUAL[kind] for kind in kinds])
    # in units of the usual rates and of each step's seconds
    shares = np.array([[work.get(kind, 0) for kind in kinds] for work in works]) * usual
    shares /= np.array(seconds)[:, None]
    system = np.concatenate([shares, np.eye(len(kinds)) * DRAWN])
    target = np.concatenate([np.ones(len(seconds)), np.full(len(kinds), DRAWN)])
    found, step = np.ones(len(kinds)), np.linalg.norm(system, 2) ** -2
    for _ in range(20_000):  # projected gradient: a convex problem of sixteen unknowns
        found = np.maximum(found - step * (system.T @ (system @ found - target)), 0)
    return {kind: float(f"{rate:.3g}") for kind, rate in zip(kinds, found * usual, strict=True)}
