"""The comparison of rows: which provider is the best of its kind, by how much fastbn is ahead of it, and in
which words that is said.

Only rows of one record and one (level, case) are set against each other; a provider that failed is never the
best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from bench.records.conditions import in_words
from bench.records.rows import Record, Row
from fastbn.page.page import ABSENT, Html, listing
from fastbn.page.scales import number

# fastbn; stock with only BatchNorm training, with everything; stock's part of either (a kernel)
KINDS = ("fastbn", "bn", "all", "")
COLOUR = {"fastbn": 0, "bn": 1, "all": 2, "": 2, "stock": 2}
TRAINS = {"bn": "BN only", "all": "everything"}
ALONE = "timed one after another, not in turn: memory does not hold all providers at once"


@dataclasses.dataclass(frozen=True)
class Case:
    """The rows that were measured side by side: the rows of one case of a record, and that record with its
    place among them (from 1)."""

    record: Record
    place: int
    name: str
    rows: list[Row]

    def has(self, kind: str) -> bool:
        """Tell whether any provider of this kind was tried."""
        return any(_is(row, kind) for row in self.rows)

    def best(self, kind: str) -> Row | None:
        """Return the fastest of this kind, or of all stock providers for "stock", that did not fail, if there
        is one."""
        timed = [row for row in self.rows if measured(row) and row.seconds and _is(row, kind)]
        return min(timed, key=lambda row: row.seconds or math.inf, default=None)

    def label(self, row: Row) -> str:
        """Return a provider's name, with its precision where the case holds several."""
        return named(row, len({own.precision for own in self.rows}) > 1)

    def ratio(self, kind: str) -> tuple[float, float, float] | None:
        """Return how often fastbn's best fits into stock's best of this kind, and the same from quartile to
        quartile, at worst and at best."""
        ours, theirs = self.best("fastbn"), self.best(kind)
        if not (ours and theirs and ours.seconds and theirs.seconds):
            return None
        low = (theirs.q1 or theirs.seconds) / (ours.q3 or ours.seconds)
        return theirs.seconds / ours.seconds, low, (theirs.q3 or theirs.seconds) / (ours.q1 or ours.seconds)

    def saved(self, row: Row) -> int | None:
        """Return the bytes kept for the backward: of this row, else of the same provider and case where
        memory was measured by itself."""
        same = (r for r in self.record.rows if (r.case, r.provider) == (row.case, row.provider))
        kept = (r.saved_bytes for r in (row, *filter(measured, same)))
        return next((size for size in kept if size is not None), None)

    @property
    def under(self) -> str:
        """The conditions of a figure in one line; all of them stand at the page's end."""
        return f"[{self.place}] " + ", ".join(in_words(self.record.conditions, "torch"))

    @property
    def failures(self) -> Html:
        return listing(f"{self.label(row)} failed: {row.failed}" for row in self.rows if not measured(row))


def measured(row: Row) -> bool:
    return row.failed is None


def kind_of(row: Row) -> str:
    return "fastbn" if row.provider.startswith("fastbn") else row.trains


def _is(row: Row, kind: str) -> bool:
    return kind_of(row) != "fastbn" if kind == "stock" else kind_of(row) == kind


def cases(records: Sequence[Record], level: str) -> list[Case]:
    """Return the cases in the order recorded; within a case fastbn first, then by what trains, the fastest
    first, those that failed last."""
    found = []
    for place, record in enumerate(records, 1):
        rows = [row for row in record.rows if row.level == level]
        for name in dict.fromkeys(row.case for row in rows):
            own = [row for row in rows if row.case == name]
            found.append(Case(record, place, name, sorted(own, key=_order)))
    return found


def _order(row: Row) -> tuple[int, bool, float]:
    return KINDS.index(kind_of(row)), not measured(row), row.seconds or math.inf


def share_of_roofline(row: Row, machine: dict[str, float]) -> float | None:
    """Return the share as recorded, else least time by the machine's own rates over the time measured."""
    if row.roofline_share is not None or not row.seconds:
        return row.roofline_share
    names = ("copy_bytes_per_second", "matmul_flops_per_second")
    counted = zip((row.moved_bytes, row.flops), map(machine.get, names), strict=True)
    least = [amount / rate for amount, rate in counted if amount is not None and rate]
    return max(least) / row.seconds if len(least) == 2 else None


def named(row: Row, precision: bool) -> str:
    """Return a provider's name, with its precision where that is asked for and not in the name already."""
    told = precision and row.precision not in row.provider
    return f"{row.provider}, {row.precision}" if told else row.provider


def figure_of(value: float | None, scale: float = 1.0, unit: str = "") -> str:
    if isinstance(value, int) and scale == 1:
        return f"{value:,}"
    return ABSENT if value is None else f"{number(value * scale)}{unit}"


def milliseconds(row: Row) -> str:
    """Return milliseconds with a space that no line breaks at."""
    return f"{number(1e3 * (row.seconds or 0.0))}\u00a0ms"


def timing(row: Row) -> list[str]:
    """Return the cells of a row's milliseconds and their quartiles."""
    quartiles = ABSENT
    if row.q1 is not None and row.q3 is not None:
        quartiles = f"{number(1e3 * row.q1)} … {number(1e3 * row.q3)}"
    return [figure_of(row.seconds, 1e3) if measured(row) else "failed", quartiles]
