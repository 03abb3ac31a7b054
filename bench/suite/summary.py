"""A record in words, for the terminal: every case with its ratio to the best stock provider, the runs, the
curves' exponents."""

from __future__ import annotations

from bench.records.rows import Record, Row
from bench.report.compare import Case, cases
from bench.report.growth import fitted
from bench.report.runs import same_accuracy


def lines(record: Record) -> list[str]:
    machine = record.machine
    found = [
        f"{record.conditions['device']}: copy {machine['copy_bytes_per_second'] / 1e9:.1f} GB/s, "
        f"fp32 matrix product {machine['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s"
    ]
    for level in dict.fromkeys(row.level for row in record.rows):
        for case in cases([record], level):
            whole = [f"{case.name}: {same_accuracy(case)}"] if level == "run" else []
            found += whole or [f"{level}: {case.name}", *(f"    {_row(row, case)}" for row in case.rows)]
    return found + [f"scaling: {curve}" for curve in fitted(record.rows)]


def _row(row: Row, case: Case) -> str:
    """Return a row as in: fastbn native 79.70 ms (79.10 … 80.20) 1606 images/s 22% of roofline 1.82× stock-bn
    … 2.32× stock-full …"""
    if row.failed or not row.seconds:
        return f"{row.provider:32} {'' if row.hopeless else 'failed: '}{row.failed}"
    spread = "" if row.q1 is None or row.q3 is None else f" ({1e3 * row.q1:.2f} … {1e3 * row.q3:.2f})"
    text = f"{row.provider:32}{1e3 * row.seconds:10.2f} ms{spread:22}"
    if row.level == "kernel":
        rates = (1e-9 * (amount or 0) / row.seconds for amount in (row.moved_bytes, row.flops))
        text += "{:7.1f} GB/s{:8.0f} GFLOP/s".format(*rates)
    else:
        text += f"{row.images_per_second:9.0f} images/s"
    if row.roofline_share is not None:
        text += f"  {row.roofline_share:4.0%} of roofline"
    if row is case.best("fastbn"):
        best = {stock.provider: stock for kind in ("stock", "all") if (stock := case.best(kind))}
        text += "".join(f"  {(own.seconds or 0.0) / row.seconds:.2f}× {name}" for name, own in best.items())
    return text
