"""A record in words, for the terminal: every case with its ratio to the best stock provider, the curves'
exponents, the runs."""

from __future__ import annotations

from bench.records.rows import Record, Row
from bench.suite import runs
from bench.suite.measure import Measured, best
from bench.suite.scaling import fitted


def lines(record: Record) -> list[str]:
    machine = record.machine
    found = [
        f"{record.conditions['device']}: copy {machine['copy_bytes_per_second'] / 1e9:.1f} GB/s, "
        f"fp32 matrix product {machine['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s"
    ]
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in record.rows:
        cases.setdefault((row.level, row.case), []).append(row)
    for (level, case), rows in cases.items():
        if level != "run":
            found += [f"{level}: {case}", *(f"    {_row(row, rows)}" for row in rows)]
    found += [f"scaling: {curve}" for curve in fitted(record.rows)]
    for (level, _), rows in cases.items():
        if level == "run":
            by_provider: dict[str, list[Measured]] = {}
            for row in rows:
                by_provider.setdefault(row.provider, []).append(Measured(row))
            found += runs.said(by_provider)
    return found


def _row(row: Row, beside: list[Row]) -> str:
    """Return a row as in: fastbn native 79.70 ms (79.10 … 80.20) 1606 images/s 22% of roofline 1.82× stock-bn
    … 2.32× stock-full …"""
    if row.failed or not row.seconds:
        return f"{row.provider:32} {'' if row.hopeless else 'failed: '}{row.failed}"
    spread = (
        f" ({1e3 * row.q1:.2f} … {1e3 * row.q3:.2f})" if row.q1 is not None and row.q3 is not None else ""
    )
    text = f"{row.provider:32}{1e3 * row.seconds:10.2f} ms{spread:22}"
    if row.level == "kernel":
        text += (
            f"{(row.moved_bytes or 0) / row.seconds / 1e9:7.1f} "
            f"GB/s{(row.flops or 0) / row.seconds / 1e9:8.0f} GFLOP/s"
        )
    else:
        text += f"{row.images_per_second:9.0f} images/s"
    if row.roofline_share is not None:
        text += f"  {row.roofline_share:4.0%} of roofline"
    if row.provider.startswith("fastbn"):
        for trains in (None, "all"):
            stock = best(beside, trains=trains)
            if stock is not None and stock.seconds and (trains is None or stock is not best(beside)):
                text += f"  {stock.seconds / row.seconds:.2f}× {stock.provider}"
    return text
