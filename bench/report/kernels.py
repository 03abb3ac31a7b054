"""The report's kernels: GB/s and FLOP/s against the machine's own, and the roofline."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records.rows import Record, Row
from bench.report.compare import Case, cases, figure_of, kind_of, measured, share_of_roofline, timing
from fastbn.page import page
from fastbn.page.charts import Bar, ChartValue, Series, bars, roofline
from fastbn.page.page import ABSENT, NOTHING, Html
from fastbn.page.scales import number

HEADER = ["kernel", "provider", "ms", "quartiles", "GB/s", "of the copy", "GFLOP/s", "of the matmul"]
HEADER += ["of the roofline", "against stock"]
SHARE = "Share of the roofline"
WHAT = (
    "The least time that this machine's own copy and matrix product allow, over the time taken; above 100 % "
    "caches help, or an algorithm needs fewer operations than are counted."
)


def kernels(records: Sequence[Record]) -> Html:
    found = cases(records, "kernel")
    parts = ([case for case in found if case.record is record] for record in records)
    return page.section("Kernels", *(_kernels(own) for own in parts if own))


def _kernels(own: list[Case]) -> Html:
    """Return the part of a record's kernels."""
    machine, under = own[0].record.machine, own[0].under
    copy, matmul = (machine.get(f"{name}_per_second") for name in ("copy_bytes", "matmul_flops"))
    rows, shares, notes = [], [], []
    spots: dict[bool, list[tuple[float, float, str]]] = {True: [], False: []}
    for i, case in enumerate(own, 1):
        for row in case.rows:
            rows.append([f"{i}. {case.name}", case.label(row), *timing(row), *_reached(row, copy, matmul)])
            ratio = case.ratio("stock") if row is case.best("fastbn") else None
            rows[-1] += [figure_of(share_of_roofline(row, machine), 100, " %")]
            rows[-1] += [f"{ratio[0]:.2f}×" if ratio else ABSENT]
            if not measured(row):
                notes.append(f"{case.label(row)} failed at {case.name}: {row.failed}")
            elif row.seconds and row.moved_bytes and row.flops:
                spot = row.flops / row.moved_bytes, row.flops / row.seconds, str(i)
                spots[kind_of(row) == "fastbn"].append(spot)
        best = (case.best(kind) for kind in ("fastbn", "stock"))
        reached = [share_of_roofline(row, machine) if row else None for row in best]
        values = [None if share is None else ChartValue(100 * share) for share in reached]
        shares.append(Bar(f"{i}. {case.name}", values))
    series = [
        Series(name, [spot[:2] for spot in spots[ours]], *look, labels=[label for *_, label in spots[ours]])
        for ours, name, look in ((True, "fastbn", (0, 0)), (False, "stock", (2, 1)))
        if spots[ours]
    ]
    roof = roofline("Roofline of the kernels", series, copy, matmul) if copy and matmul else NOTHING
    chart = bars(SHARE, shares, " %", ("fastbn", "stock"), rule=100.0)
    drawn = [page.figure(chart, SHARE, f"{WHAT} {under}")]
    drawn += [page.figure(roof, "Roofline", f"Numbers are the kernels' in the table. {under}")]
    rates = page.paragraph(_rates(copy, matmul), "note")
    return page.joined([page.figures(drawn), page.listing(notes), rates, page.table(HEADER, rows)])


def _reached(row: Row, copy: float | None, matmul: float | None) -> list[str]:
    """Return the cells of a row's rates, each with its part of the machine's own."""
    cells = []
    for amount, most in ((row.moved_bytes, copy), (row.flops, matmul)):
        rate = amount / row.seconds if amount and row.seconds else None
        cells += [figure_of(rate, 1e-9), figure_of(rate / most if rate and most else None, 100, " %")]
    return cells


def _rates(copy: float | None, matmul: float | None) -> str:
    parts = [f"copies {number(copy / 1e9)} GB/s" if copy else ""]
    parts += [f"multiplies matrices at {number(matmul / 1e9)} GFLOP/s" if matmul else ""]
    said = " and ".join(filter(None, parts))
    known = f"This machine {said}, measured in the same run."
    return known if said else "No rates of this machine are recorded."
