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
    copy, matmul = _machine(record)
    rows, shares = [], []
    spots: dict[bool, list[tuple[float, float, str]]] = {}
    for i, case in enumerate(own, 1):
        for row in case.rows:
            rate = row.moved_bytes / row.seconds if row.moved_bytes and row.seconds else None
            speed = row.flops / row.seconds if row.flops and row.seconds else None
            share, ratio = share_of_roofline(row, record.machine), case.ratio("stock")
            cells = [f"{i}. {case.name}", case.label(row)]
            cells += [figure_of(row.seconds, 1e3) if measured(row) else "failed", spread(row, 1e3)]
            for reached, most in ((rate, copy), (speed, matmul)):
                part = reached / most if reached and most else None
                cells += [figure_of(reached, 1e-9), figure_of(part, 100, " %")]
            cells += [figure_of(share, 100, " %")]
            rows.append([*cells, f"{ratio[0]:.2f}×" if ratio and row is case.best("fastbn") else ABSENT])
            if speed and row.moved_bytes and row.flops and measured(row):
                spot = row.flops / row.moved_bytes, speed, str(i)
                spots.setdefault(kind_of(row) == "fastbn", []).append(spot)
        best = [case.best(kind) for kind in ("fastbn", "stock")]
        reached_shares = [share_of_roofline(row, record.machine) if row else None for row in best]
        values = [None if share is None else ChartValue(100 * share) for share in reached_shares]
        shares.append(Bar(f"{i}. {case.name}", values))
    looks = {True: ("fastbn", 0, 0), False: ("stock", 2, 1)}
    series = []
    for ours, at in sorted(spots.items(), reverse=True):
        labels = [label for _, _, label in at]
        series.append(Series(looks[ours][0], [(x, y) for x, y, _ in at], *looks[ours][1:], labels=labels))
    roof = roofline("Roofline of the kernels", series, copy, matmul) if copy and matmul else NOTHING
    failed = [(case, row) for case in own for row in case.rows if not measured(row)]
    notes = [f"{case.label(row)} failed at {case.name}: {row.failed}" for case, row in failed]
    header = ["kernel", "provider", "ms", "quartiles", "GB/s", "of the copy"]
    header += ["GFLOP/s", "of the matmul", "of the roofline", "against stock"]
    chart = bars(SHARE, shares, " %", ("fastbn", "stock"), rule=100.0)
    drawn = [figure(chart, SHARE, f"{WHAT} {under(own[0])}")]
    drawn += [figure(roof, "Roofline", f"Numbers are the kernels' in the table. {under(own[0])}")]
    return joined([figures(drawn), listing(notes), paragraph(_rates(record), "note"), table(header, rows)])


SHARE = "Share of the roofline"
WHAT = (
    "The least time that this machine's own copy and matrix product allow, over the time taken; above 100 % "
    "caches help, or an algorithm needs fewer operations than are counted."
)


def _machine(record: Record) -> tuple[float | None, float | None]:
    return record.machine.get("copy_bytes_per_second"), record.machine.get("matmul_flops_per_second")


def _rates(record: Record) -> str:
    copy, matmul = _machine(record)
    parts = [f"copies {number(copy / 1e9)} GB/s" if copy else ""]
    parts += [f"multiplies matrices at {number(matmul / 1e9)} GFLOP/s" if matmul else ""]
    said = " and ".join(filter(None, parts))
    known = f"This machine {said}, measured in the same run."
    return known if said else "No rates of this machine are recorded."
