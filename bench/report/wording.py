"""The words in which the report says a measurement: figures, spreads, conditions, failures, the colour of a
kind of provider."""

from __future__ import annotations

from bench.records.rows import Row
from bench.report.compare import Case, measured
from fastbn.page.page import ABSENT, Html, listing
from fastbn.page.scales import number

COLOUR = {"fastbn": 0, "bn": 1, "all": 2, "": 2, "stock": 2}
LEGEND = (("fastbn, BN only", 0), ("stock, BN only", 1), ("stock, everything", 2))  # of COLOUR, for steps
TRAINS = {"bn": "BN only", "all": "everything"}
ALONE = "timed one after another, not in turn: memory does not hold all providers at once"
AGAINST = {"bn": "the best stock BN-only step", "all": "the best stock step that trains everything"}


def under(case: Case) -> str:
    """Return the conditions of a figure in one line; all of them stand at the page's end."""
    found = case.record.conditions
    parts = [
        found.get("device"),
        _torch(found),
        f"commit {found['commit']}" if found.get("commit") else None,
        found.get("date"),
    ]
    return f"[{case.place}] " + ", ".join(str(part) for part in parts if part)


def _torch(found: dict[str, object]) -> str | None:
    versions = found.get("versions")
    return f"torch {versions['torch']}" if isinstance(versions, dict) and "torch" in versions else None


def figure_of(value: float | None, scale: float = 1.0, unit: str = "") -> str:
    if isinstance(value, int) and scale == 1:
        return f"{value:,}"
    return ABSENT if value is None else f"{number(value * scale)}{unit}"


def milliseconds(row: Row) -> str:
    """Return milliseconds with a space that no line breaks at."""
    return f"{number(1e3 * (row.seconds or 0.0))}\u00a0ms"


def spread(row: Row, scale: float) -> str:
    return (
        ABSENT if row.q1 is None or row.q3 is None else f"{number(row.q1 * scale)} … {number(row.q3 * scale)}"
    )


def failures(case: Case) -> Html:
    return listing(f"{case.label(row)} failed: {row.failed}" for row in case.rows if not measured(row))
