"""The comparison of rows: which provider is the best of its kind, and by how much fastbn is ahead of it.

Only rows of one record and one (level, case) are set against each other; a provider that failed is never the
best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from bench.records.rows import Record, Row

# fastbn; stock with only BatchNorm training, with everything; stock's part of either (a kernel)
KINDS = ("fastbn", "bn", "all", "")


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
        mixed = len({own.precision for own in self.rows}) > 1 and row.precision not in row.provider
        return f"{row.provider}, {row.precision}" if mixed else row.provider

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
        beside = [
            r for r in self.record.rows if (r.case, r.provider) == (row.case, row.provider) and measured(r)
        ]
        return next((r.saved_bytes for r in (row, *beside) if r.saved_bytes is not None), None)


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
    counted = (
        (row.moved_bytes, machine.get("copy_bytes_per_second")),
        (row.flops, machine.get("matmul_flops_per_second")),
    )
    least = [amount / rate for amount, rate in counted if amount is not None and rate]
    return max(least) / row.seconds if len(least) == 2 else None
