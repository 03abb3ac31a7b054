"""The report's kernels: GB/s and FLOP/s against the machine's own, and the roofline."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records.rows import Record
from bench.report.compare import Case, cases, kind_of, measured, share_of_roofline
from bench.report.wording import figure_of, spread, under
from fastbn.page.charts import Bar, ChartValue, Series, bars, roofline
from fastbn.page.page import (
    ABSENT,
    NOTHING,
    Html,
    figure,
    figures,
    joined,
    listing,
    paragraph,
    section,
    table,
)
from fastbn.page.scales import number


def kernels(records: Sequence[Record]) -> Html:
    return section("Kernels", *(_kernels(record, place) for place, record in enumerate(records, 1)))


def _kernels(record: Record, place: int) -> Html:
    own = [Case(record, place, case.name, case.rows) for case in cases([record], "kernel")]
    if not own:
        return NOTHING
    copy, matmul = record.machine.get("copy_bytes_per_second"), record.machine.get("matmul_flops_per_second")
    rows, shares = [], []
    spots: dict[bool, list[tuple[float, float, str]]] = {}
    for i, case in enumerate(own, 1):
        for row in case.rows:
            rate = row.moved_bytes / row.seconds if row.moved_bytes and row.seconds else None
            speed = row.flops / row.seconds if row.flops and row.seconds else None
            share, ratio = share_of_roofline(row, record.machine), case.ratio("stock")
            cells = [f"{i}. {case.name}", case.label(row)]
            cells += [figure_of(row.seconds, 1e3) if measured(row) else "failed", spread(row, 1e3)]
            cells += [figure_of(rate, 1e-9), figure_of(rate / copy if rate and copy else None, 100, " %")]
            cells += [
                figure_of(speed, 1e-9),
                figure_of(speed / matmul if speed and matmul else None, 100, " %"),
            ]
            cells += [figure_of(share, 100, " %")]
            rows.append([*cells, f"{ratio[0]:.2f}×" if ratio and row is case.best("fastbn") else ABSENT])
            if speed and row.moved_bytes and row.flops and measured(row):
                spots.setdefault(kind_of(row) == "fastbn", []).append(
                    (row.flops / row.moved_bytes, speed, str(i))
                )
        best = [case.best(kind) for kind in ("fastbn", "stock")]
        reached = [share_of_roofline(row, record.machine) if row else None for row in best]
        shares.append(
            Bar(
                f"{i}. {case.name}", [None if share is None else ChartValue(100 * share) for share in reached]
            )
        )
    looks = {True: ("fastbn", 0, 0), False: ("stock", 2, 1)}
    series = []
    for ours, at in sorted(spots.items(), reverse=True):
        name, kind, look = looks[ours]
        series.append(
            Series(name, [(x, y) for x, y, _ in at], kind, look, labels=[label for _, _, label in at])
        )
    roof = roofline("Roofline of the kernels", series, copy, matmul) if copy and matmul else NOTHING
    notes = [
        f"{case.label(row)} failed at {case.name}: {row.failed}"
        for case in own
        for row in case.rows
        if not measured(row)
    ]
    header = ["kernel", "provider", "ms", "quartiles", "GB/s", "of the copy"]
    header += ["GFLOP/s", "of the matmul", "of the roofline", "against stock"]
    what = "The least time that this machine's own copy and matrix product allow, over the time taken; "
    what += (
        f"above 100 % caches help, or an algorithm needs fewer operations than are counted. {under(own[0])}"
    )
    drawn = [
        figure(
            bars("Share of the roofline", shares, " %", ("fastbn", "stock"), rule=100.0),
            "Share of the roofline",
            what,
        )
    ]
    drawn += [figure(roof, "Roofline", f"Numbers are the kernels' in the table. {under(own[0])}")]
    return joined([figures(drawn), listing(notes), paragraph(_rates(record), "note"), table(header, rows)])


def _rates(record: Record) -> str:
    copy, matmul = record.machine.get("copy_bytes_per_second"), record.machine.get("matmul_flops_per_second")
    parts = [f"copies {number(copy / 1e9)} GB/s" if copy else ""]
    parts += [f"multiplies matrices at {number(matmul / 1e9)} GFLOP/s" if matmul else ""]
    said = " and ".join(part for part in parts if part)
    return (
        f"This machine {said}, measured in the same run."
        if said
        else "No rates of this machine are recorded."
    )
