"""docs/networks.md, written from the records of `python -m bench.architectures`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.architectures.measure import FUSED, STOCK

COMMAND = "python -m bench.architectures"
HEAD = f"""# Networks that nobody here wrote

What `fastbn.fuse` makes of other libraries' networks, randomly initialised, all but BatchNorm's γ and β
frozen. `{COMMAND}` writes this page from its records in `bench/results/`.

- **fused**: convolutions that run fused, and their share of the multiplications.
- **gradients**, **buffers**: the relative difference, by norm, from stock PyTorch, both in float64, with
  random upstream gradients in train mode.
- **float32**: the gradients' difference in float32 from stock's in float64, beside that of stock in float32:
  what rounding alone makes.
- **step**: forward, loss and backward; the better of stock's two layouts over fused.
- **memory**: the most that a step holds beyond the network itself; fused over stock's least.
"""
COLUMNS = "network | fused | gradients | buffers | float32, stock's | step, ms | of stock | memory"


def write_page(page: Path, results: Path) -> None:
    """Write the page from all records of this folder."""
    page.write_text(text(results), encoding="utf-8")


def text(results: Path) -> str:
    """Return the page in Markdown: a section for each record, the newest first."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("architectures-*.json")]
    records.sort(
        key=lambda record: (record["conditions"]["date"], record["conditions"]["device"]), reverse=True
    )
    return "\n".join([HEAD, *map(_section, records)])


def _section(record: Mapping[str, Any]) -> str:
    conditions, rows = record["conditions"], record["rows"]
    versions = conditions["versions"] | conditions["libraries"]
    said = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    lines = [
        f"## {conditions['device']}",
        "",
        f"{conditions['date']}, {said}; {_setting(rows)}.",
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
    memory = "—"
    if "peak_bytes" in row:
        peaks = row["peak_bytes"]
        memory = f"{peaks[FUSED] / min(peaks[name] for name in STOCK):.2f}×"
    return [title, *agreement, *step, memory]


def ratio_of(seconds: Mapping[str, list[float]]) -> tuple[float, float]:
    """Return the fused step's median seconds, and the median over the rounds of the better stock's time over
    fused's: a machine that drifts does so for all providers of a round."""
    best = min(STOCK, key=lambda name: statistics.median(seconds[name]))
    ratios = [stock / own for stock, own in zip(seconds[best], seconds[FUSED], strict=True)]
    return statistics.median(seconds[FUSED]), statistics.median(ratios)
