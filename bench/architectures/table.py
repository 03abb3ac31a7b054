"""The tables of docs/networks.md, written between two markers from the records of `python -m
bench.architectures`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.architectures.measure import FULL, FUSED, FUSED_NCHW, LAYOUTS, STOCK
from bench.records import between
from fastbn.errors import UsageError
from fastbn.planning import gain

MARKERS = "<!-- architectures -->", "<!-- /architectures -->"
README_MARKERS = "<!-- bench:networks -->", "<!-- /bench:networks -->"
SAID = 8  # the batch size of the README's sentence
COLUMNS = (
    "network", "fused", "gradients", "buffers", "float32, stock's", "step, ms", "of stock", "of full",
    "predicted", "memory",
)  # fmt: skip


def tables(results: Path) -> str:
    """Return them in Markdown, the newest first, a table for each batch size."""
    sections = [
        _section(record["conditions"], batch, [row for row in record["rows"] if row["batch_size"] == batch])
        for record in _records(results)
        for batch in sorted({row["batch_size"] for row in record["rows"]})
    ]
    return "\n".join(sections).rstrip("\n")


def sentence(results: Path) -> str:
    """Return the newest record's step of ResNet-50 and its ratio, and MobileNetV2's ratio, in a sentence.

    Raises UsageError where no record has both."""
    for record in _records(results):
        timed = [row for row in record["rows"] if row["library"] == "torchvision" and "seconds" in row]
        rows = {row["name"]: row for row in timed if row["batch_size"] == SAID}
        if {"resnet50", "mobilenet_v2"} <= rows.keys():
            break
    else:
        raise UsageError(f"no record in {results} has the steps of torchvision's resnet50 and mobilenet_v2")
    first, second = rows["resnet50"], rows["mobilenet_v2"]
    (seconds, ratio), (_, other) = ratio_of(first["seconds"]), ratio_of(second["seconds"])
    return (
        f"ResNet-50 as torchvision builds it, {first['size']}×{first['size']}, batch {first['batch_size']}, "
        f"takes {1e3 * seconds:.0f} ms a step on\n{record['conditions']['device']}, {ratio:.2f} times as "
        f"fast as stock BN-only; MobileNetV2 {other:.2f} times ({record['conditions']['date']}).\n"
        "[docs/networks.md](docs/networks.md) has more, with their gradients' agreement and memory."
    )


def _records(results: Path) -> list[dict[str, Any]]:
    """Return the records, the newest first."""
    paths = results.glob("architectures-*.json")
    found: list[dict[str, Any]] = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted(
        found, key=lambda record: [record["conditions"][key] for key in ("date", "device")], reverse=True
    )


def _section(conditions: Mapping[str, Any], batch: int, rows: list[dict[str, Any]]) -> str:
    versions = conditions["versions"] | conditions["libraries"]
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    said = f"On {conditions['device']}, {conditions['date']}, {known}; steps of {batch} images."
    return f"{said}\n\n{between.table(COLUMNS, map(_cells, rows), None)}\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    title = f"{row['library']} {row['name']}"
    if "size" in row:
        title += f", {row['size']}²"
    if "gradients" in row:
        (inside, every), (done, all_of) = row["convolutions"], row["multiplications"]
        agreement = [
            f"{inside}/{every}, {100 * done / all_of:.1f}%",
            f"{row['gradients']:.0e}",
            f"{row['buffers']:.0e}",
            f"{row['gradients_float32']:.0e}, {row['stock_float32']:.0e}",
        ]
    else:
        agreement = [row.get("agreement_failed", "—"), "—", "—", "—"]
    step = ["—"] * 3
    if "seconds" in row:
        own, ratio = ratio_of(row["seconds"])
        step[:2] = f"{1e3 * own:.0f}", f"{ratio:.2f}×"
        if FUSED_NCHW in row["seconds"]:
            step[0] += f", {1e3 * statistics.median(row['seconds'][FUSED_NCHW]):.0f}"
        if FULL[0] in row["seconds"]:
            step[2] = f"{ratio_of(row['seconds'], FULL)[1]:.2f}×"
    predicted = predicted_ratio(row)
    step.append("—" if predicted is None else f"{predicted:.2f}×")
    memory = "—"
    if "peak_bytes" in row:
        peaks = row["peak_bytes"]
        memory = f"{peaks[FUSED] / min(peaks[name] for name in LAYOUTS):.2f}×"
    return [title, *agreement, *step, memory]


def predicted_ratio(row: Mapping[str, Any]) -> float | None:
    """Return what the shipped rates predict for a row's network; None where its work was not counted, or for
    an instruction set without rates."""
    rates = gain.step_rates(row["instructions"]) if "work" in row else None
    if rates is None:
        return None
    return gain.gain_of(row["work"]["stock"], row["work"]["fused"], rates).ratio


def ratio_of(seconds: Mapping[str, list[float]], stock: Iterable[str] = STOCK) -> tuple[float, float]:
    """Return the fused step's median seconds, and the median over the rounds of the best stock's time over
    fused's: a machine that drifts does so for all providers of a round. stock: the providers, as far as they
    were timed, of which the fastest is taken."""
    best = min((name for name in stock if name in seconds), key=lambda name: statistics.median(seconds[name]))
    ratios = [theirs / ours for theirs, ours in zip(seconds[best], seconds[FUSED], strict=True)]
    return statistics.median(seconds[FUSED]), statistics.median(ratios)
