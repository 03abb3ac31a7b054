"""The report's sections, each made of the records alone; one that has nothing to show is empty."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.records.rows import Record
from bench.report import compare
from bench.report.compare import COLOUR, Case, cases, figure_of, kind_of, measured, share_of_roofline
from bench.report.growth import EXPONENTS, growth
from fastbn.page.charts import Bar, ChartValue, bars
from fastbn.page.page import (
    ABSENT,
    NOTHING,
    Html,
    figure,
    figures,
    heading,
    joined,
    paragraph,
    section,
    table,
)

AGAINST = {"bn": "the best stock BN-only step", "all": "the best stock step that trains everything"}
LEGEND = (("fastbn, BN only", 0), ("stock, BN only", 1), ("stock, everything", 2))  # of COLOUR
TITLE = "Speed of a step against the best stock provider"
CAPTION = (
    "How often fastbn's step fits into stock's; whiskers from quartile to quartile, dashed where both take "
    "the same."
)

ABOVE = (
    "The roofline is the least time that this machine's own copy and matrix product allow for the bytes "
    "that must move and the products that the convolutions have. A share above 100 % is no error: Winograd's "
    "and other algorithms make fewer products than are counted, and caches serve some of the bytes."
)


def headline(records: Sequence[Record]) -> Html:
    """Return the section that sets fastbn's step beside the best stock step of each kind."""
    found = cases(records, "step")
    rows, said = [], []
    charts: dict[int, list[Bar]] = {}
    for case in found:
        name = f"{case.name} [{case.place}]" if len(records) > 1 else case.name
        cells, ratios = [_at_best(case, "fastbn")], [case.ratio(kind) for kind in AGAINST]
        for kind, ratio in zip(AGAINST, ratios, strict=True):
            cells += [_at_best(case, kind), f"{ratio[0]:.2f}×" if ratio else ABSENT]
        rows.append([name, *cells])
        values = [ChartValue(*ratio) if ratio else None for ratio in ratios]
        charts.setdefault(case.place, []).append(Bar(case.name, values))
    for kind, against in AGAINST.items():
        speeds = [ratio[0] for case in found if (ratio := case.ratio(kind))]
        if speeds:
            extent = " to ".join(dict.fromkeys(f"{ratio:.2f}" for ratio in (min(speeds), max(speeds))))
            slower = sum(ratio < 1 for ratio in speeds)
            but = f", slower in {slower} of {len(speeds)} cases" if slower else ""
            said.append(f"A step of fastbn is {extent} times as fast as {against}{but}.")
    conditions = {case.place: case.under for case in found}
    drawn = [
        figure(bars(TITLE, own, "×", ("BN only", "everything"), rule=1.0), TITLE, conditions[place])
        for place, own in charts.items()
    ]
    header = ["training step", "fastbn", "best stock, BN only", "ratio", "best stock, everything", "ratio"]
    words = paragraph(" ".join(said)) if said else NOTHING
    whiskers = paragraph(CAPTION, "note") if charts else NOTHING
    return section("Headline", words, whiskers, figures(drawn), table(header, rows))


def _at_best(case: Case, kind: str) -> str:
    best = case.best(kind)
    if best is None:
        return "failed" if case.has(kind) else ABSENT
    return f"{case.label(best)} {compare.milliseconds(best)}"


def steps(records: Sequence[Record]) -> Html:
    found = cases(records, "step")
    shares = [share_of_roofline(row, case.record.machine) or 0.0 for case in found for row in case.rows]
    note = paragraph(ABOVE, "note") if max(shares, default=0.0) > 1 else NOTHING
    return section("Steps", note, *map(_steps, found)) if found else NOTHING


def _steps(case: Case) -> Html:
    alone = f"{compare.ALONE.capitalize()}." if any(row.alone for row in case.rows) else ""
    note = paragraph(alone, "note") if alone else NOTHING
    timed = [
        Bar(
            case.label(r),
            [ChartValue(1e3 * r.seconds, *map(_milliseconds, (r.q1, r.q3)))],
            COLOUR[kind_of(r)],
        )
        for r in case.rows
        if measured(r) and r.seconds
    ]
    chart = bars(f"{case.name}, ms a step", timed, " ms", kinds=LEGEND)
    drawn = figure(chart, "Median of a step, whiskers at the quartiles", case.under)
    return joined([heading(case.name), note, drawn, case.failures, _step_table(case)])


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _step_table(case: Case) -> Html:
    header = ["provider", "trains", "ms", "quartiles", "n", "images/s", "µs an image", "first call, s"]
    header += ["gradient error", "launches", "GB moved", "GFLOP", "of the roofline"]
    rows = []
    for row in case.rows:
        rate, share = row.images_per_second, share_of_roofline(row, case.record.machine)
        cells = [case.label(row), compare.TRAINS.get(row.trains, row.trains), *compare.timing(row)]
        cells += [figure_of(row.n), figure_of(rate), figure_of(1 / rate if rate else None, 1e6)]
        cells += [figure_of(row.first_seconds)]
        cells += [ABSENT if row.gradient_error is None else f"{row.gradient_error:.1e}"]
        cells += [figure_of(row.launches), figure_of(row.moved_bytes, 1e-9), figure_of(row.flops, 1e-9)]
        rows.append([*cells, figure_of(share, 100, " %")])
    return table(header, rows)


def memory(records: Sequence[Record]) -> Html:
    drawn = []
    named: dict[tuple[int, str], Case] = {}
    for level in ("memory", "step"):
        for case in cases(records, level):
            named.setdefault((case.place, case.name), case)
    for case in named.values():
        found = []
        for row in case.rows:
            kept = case.saved(row)
            if not measured(row) or (row.peak_memory_bytes is None and kept is None):
                continue
            values = [None if v is None else ChartValue(v / 1e6) for v in (row.peak_memory_bytes, kept)]
            found.append(Bar(case.label(row), values, COLOUR[kind_of(row)]))
        chart = bars(f"{case.name}, MB", found, " MB", ("peak", "saved"))
        drawn.append(figure(chart, f"{case.name}: peak, and saved for the backward", case.under))
    metrics = ("peak_memory_bytes", "saved_bytes")
    against = [one for metric in metrics for one in growth(records, "batch_size", metric)]
    said = paragraph(EXPONENTS) if any(against) else NOTHING
    return section("Memory", figures(drawn), said, figures(against))


def energy(records: Sequence[Record]) -> Html:
    """Return the section of joules: of an image of a step, of a run's last epoch."""
    drawn = []
    for level, what, unit, scale in (("step", "an image of a step", "mJ", 1e3), ("run", "a run", "kJ", 1e-3)):
        for case in cases(records, level):
            counted = [row for row in case.rows if row.energy_joules and measured(row)]
            ends = {case.label(row): row for row in sorted(counted, key=lambda row: row.epochs or 0)}
            found = []
            for row in (row for row in counted if row in ends.values()):
                images = (row.batch_size or math.nan) if level == "step" else 1.0
                value = scale * (row.energy_joules or 0.0) / images
                if math.isfinite(value):
                    epochs = f", {row.epochs} epoch{'s' if row.epochs != 1 else ''}" if row.epochs else ""
                    found.append(Bar(case.label(row) + epochs, [ChartValue(value)], COLOUR[kind_of(row)]))
            chart = bars(case.name, found, f" {unit}")
            drawn.append(figure(chart, f"{case.name}: {unit} for {what}", case.under))
    return section("Energy", figures(drawn))
