"""The tables of docs/networks.md, written between two markers from the records of `python -m
bench.architectures`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.architectures.measure import FUSED, STOCK
from bench.records import between
from fastbn.errors import UsageError
from fastbn.planning import gain

MARKERS = "<!-- architectures -->", "<!-- /architectures -->"
README_MARKERS = "<!-- bench:networks -->", "<!-- /bench:networks -->"
COLUMNS = (
    "network | fused | gradients | buffers | float32, stock's | step, ms | of stock | predicted | memory"
)


def write_tables(page: Path, results: Path) -> None:
    """Write a table for each record of this folder between the page's markers.

    Raises UsageError where a marker is missing."""
    between.write(page, MARKERS, tables(results))


def write_sentence(readme: Path, results: Path) -> None:
    """Write what the newest record says of two networks between the README's markers.

    Raises UsageError where a marker is missing."""
    between.write(readme, README_MARKERS, sentence(results))


def tables(results: Path) -> str:
    """Return them in Markdown, the newest first."""
    return "\n".join(map(_section, _records(results))).rstrip("\n")


def sentence(results: Path) -> str:
    """Return the newest record's step of ResNet-50 and its ratio, and MobileNetV2's ratio, in a sentence.
    Raises UsageError where no record has both."""
    for record in _records(results):
        timed = [row for row in record["rows"] if row["library"] == "torchvision" and "seconds" in row]
        rows = {row["name"]: row for row in timed}
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


def _section(record: Mapping[str, Any]) -> str:
    conditions, rows = record["conditions"], record["rows"]
    versions = conditions["versions"] | conditions["libraries"]
    said = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    lines = [
        f"On {conditions['device']}, {conditions['date']}, {said}; {_setting(rows)}.",
        "",
        f"| {COLUMNS} |",
        "|" + "---|" * len(COLUMNS.split("|")),
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
        "",
    ]
    return "\n".join(lines)


def _setting(rows: list[dict[str, Any]]) -> str:
    timed = next((row for row in rows if "seconds" in row), {})
    return f"steps of {timed['batch_size']} images" if timed else "steps were not timed"


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
    step = ["—", "—"]
    if "seconds" in row:
        own, ratio = ratio_of(row["seconds"])
        step = [f"{1e3 * own:.0f}", f"{ratio:.2f}×"]
    predicted = predicted_ratio(row)
    step.append("—" if predicted is None else f"{predicted:.2f}×")
    memory = "—"
    if "peak_bytes" in row:
        peaks = row["peak_bytes"]
        memory = f"{peaks[FUSED] / min(peaks[name] for name in STOCK):.2f}×"
    return [title, *agreement, *step, memory]


def predicted_ratio(row: Mapping[str, Any]) -> float | None:
    """Return what the shipped rates predict for a row's network; None where its work was not counted, or for
    an instruction set without rates."""
    rates = gain.step_rates(row["instructions"]) if "work" in row else None
    if rates is None:
        return None
    return gain.gain_of(row["work"]["stock"], row["work"]["fused"], rates).ratio


def ratio_of(seconds: Mapping[str, list[float]]) -> tuple[float, float]:
    """Return the fused step's median seconds, and the median over the rounds of the better stock's time over
    fused's: a machine that drifts does so for all providers of a round."""
    best = min(STOCK, key=lambda name: statistics.median(seconds[name]))
    ratios = [stock / own for stock, own in zip(seconds[best], seconds[FUSED], strict=True)]
    return statistics.median(seconds[FUSED]), statistics.median(ratios)
