"""The report's runs: what BN-only training reaches and when, and when training everything was already there.

A run may have several rows of one provider, one for each epoch at which accuracy and seconds so far were
taken."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records.rows import Record, Row
from bench.report.compare import COLOUR, KINDS, TRAINS, Case, cases, figure_of, kind_of, measured
from fastbn.page.charts import Series, lines
from fastbn.page.page import ABSENT, Html, figure, heading, joined, paragraph, section, table
from fastbn.page.scales import number


def runs(records: Sequence[Record]) -> Html:
    return section("Runs", *(_run(case) for case in cases(records, "run")))


def _run(case: Case) -> Html:
    def order(row: Row) -> tuple[int, str, int, float]:
        return KINDS.index(kind_of(row)), row.provider, row.epochs or 0, _time(row)

    rows = []
    for row in sorted(case.rows, key=order):
        reached = [_accuracy(row), figure_of(row.seconds)] if measured(row) else ["failed", ABSENT]
        who = [case.label(row), TRAINS.get(row.trains, row.trains), figure_of(row.epochs)]
        rows.append([*who, *reached, figure_of(row.energy_joules)])
    header = ["provider", "trains", "epochs", "accuracy", "seconds", "joules"]
    said = [heading(case.name), paragraph(same_accuracy(case)), paragraph(case.under, "note")]
    return joined([*said, _curves(case), case.failures, table(header, rows)])


def same_accuracy(case: Case) -> str:
    """Say in words what BN-only training reaches in which time, and the first time at which training
    everything is recorded as that good."""
    done = [row for row in case.rows if measured(row) and row.accuracy is not None and row.seconds]
    everything = [row for row in done if row.trains == "all"]
    ours = [row for row in done if kind_of(row) == "fastbn"] or [row for row in done if row.trains == "bn"]
    if not ours:
        return "No BN-only run finished."
    last = max(ours, key=_time)
    said = f"BN-only training ({case.label(last)}) reaches accuracy {_accuracy(last)} in {_when(last)}."
    if not everything:
        return f"{said} No run that trains everything is recorded beside it."
    end = max(everything, key=_time)
    there = [row for row in everything if (row.accuracy or 0.0) >= (last.accuracy or 0.0)]
    if not there:
        most = max(everything, key=lambda row: row.accuracy or 0.0)
        never = f"never does in what is recorded: {_accuracy(most)} after {_when(most)}"
        return f"{said} Training everything ({case.label(most)}) {never}."
    first = min(there, key=_time)
    share = _time(first) / _time(last)
    verdict = f"{number(share)} {'of' if share < 1 else 'times'} BN-only's time"
    goes_on = "" if end is first else f", and goes on to {_accuracy(end)} in {_when(end)}"
    there_by = f"is there, at {_accuracy(first)}, after at most {_when(first)}"
    return f"{said} Training everything ({case.label(first)}) {there_by}: {verdict}{goes_on}."


def _curves(case: Case) -> Html:
    """Draw accuracy against seconds, where a provider has more than its end."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in sorted(case.rows, key=_time):
        if measured(row) and row.seconds and row.accuracy is not None:
            points.setdefault((case.label(row), kind_of(row)), []).append((row.seconds, row.accuracy))
    if max(map(len, points.values()), default=0) < 2:
        return Html("")
    series = [Series(name, at, COLOUR[kind], i) for i, ((name, kind), at) in enumerate(points.items())]
    what = "accuracy on the test set"
    return figure(lines(case.name, series, "seconds", what), f"{what.capitalize()} against seconds")


def _time(row: Row) -> float:
    return row.seconds or 0.0


def _accuracy(row: Row) -> str:
    return ABSENT if row.accuracy is None else f"{row.accuracy:.3f}"


def _when(row: Row) -> str:
    epochs = f" ({row.epochs} epoch{'s' if row.epochs != 1 else ''})" if row.epochs else ""
    return f"{number(_time(row))} s{epochs}"
