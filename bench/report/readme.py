"""The README's table of steps, written from records between two markers, so that no figure of it is typed
by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.records import between
from bench.records.conditions import in_words
from bench.records.rows import Record
from bench.report.compare import ALONE, Case, cases, milliseconds
from fastbn.errors import UsageError
from fastbn.page.scales import number

MARKERS = "<!-- bench:steps -->", "<!-- /bench:steps -->"
STOCK = {"bn": "best stock, BN only", "all": "best stock, everything"}
COLUMNS = ("training step", "fastbn", *STOCK.values(), "saved for the backward")


def write(readme: Path, records: Sequence[Record]) -> bool:
    """Put the table between the markers; return False if it was there already. Raises UsageError where there
    is no table or no place for it."""
    return between.write(readme, MARKERS, steps(records))


def steps(records: Sequence[Record]) -> str:
    """Return a table per record, its conditions above it."""
    found = [own for record in records if (own := cases([record], "step"))]
    if not found:
        raise UsageError("no training step in these records: make one with pytest bench/ --benchmark-only")
    blocks = (f"{_conditions(own)}\n\n{between.table(COLUMNS, map(_line, own), None)}" for own in found)
    return "\n\n".join(blocks)


def _conditions(own: Sequence[Case]) -> str:
    taken = sorted({row.n for case in own for row in case.rows if row.n})
    extent = "–".join(str(n) for n in dict.fromkeys((taken[0], taken[-1]))) if taken else ""
    given = _cell(f"On {', '.join(in_words(own[0].record.conditions))}")
    said = f"{given}: medians of {f'{extent} ' if extent else ''}interleaved steps in one process."
    alone = [case.name for case in own if any(row.alone for row in case.rows)]
    return said + (f" {_cell(', '.join(alone))}: {ALONE}." if alone else "")


def _line(case: Case) -> list[str]:
    ours, bn = case.best("fastbn"), case.best("bn")
    kept, stock = (None if row is None else case.saved(row) for row in (ours, bn))
    saved = "—" if kept is None else f"{number(kept / 1e6)} MB"
    saved += "" if kept is None or stock is None else f", stock {number(stock / 1e6)}"
    own = milliseconds(ours) if ours else "failed" if case.has("fastbn") else "—"
    return [_cell(value) for value in (case.name, own, *(_stock(case, kind) for kind in STOCK), saved)]


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|").replace("<", "&lt;")


def _stock(case: Case, kind: str) -> str:
    best, ratio = case.best(kind), case.ratio(kind)
    if best is None:
        hopeless = (row for row in case.rows if row.hopeless and row.trains == kind)
        slow = [row.first_seconds for row in hopeless if row.first_seconds]
        return f"{number(min(slow))} s, one step, not timed" if slow else "failed" if case.has(kind) else "—"
    return milliseconds(best) + (f": {ratio[0]:.2f}×" if ratio else "")
