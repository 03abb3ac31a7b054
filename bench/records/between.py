"""A page's part between two markers, which a command writes from a record: in words and as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from bench.records.conditions import in_words
from bench.records.rows import Record, load
from fastbn import files
from fastbn.errors import UsageError


def write(page: Path, markers: tuple[str, str], text: str) -> bool:
    """Put a text between a page's markers; return False where it was there already.

    Raises UsageError where the markers are not there once each and in this order."""
    before = page.read_text(encoding="utf-8")
    head, _, rest = before.partition(markers[0])
    _, end, tail = rest.partition(markers[1])
    if not end or any(before.count(marker) != 1 for marker in markers):
        where = f"between {markers[0]} and {markers[1]}, once each and in this order"
        raise UsageError(f"{page}: the table goes {where}; put both where it belongs")
    after = f"{head}{markers[0]}\n{text}\n{end}{tail}"
    if after != before:
        files.write(page, after.encode())
    return after != before


def put(page: Path, name: str, pattern: str, make: Callable[[Record, str], str], results: Path) -> None:
    """Write between the page's markers of this name what `make` says of the newest record, if any."""
    paths = sorted(results.glob(pattern), key=lambda path: path.stem[-len("2026-01-01") :])
    if paths:
        text = make(load(paths[-1:])[0], paths[-1].name)
        write(page, (f"<!-- {name} -->", f"<!-- /{name} -->"), text)


def conditions(record: Record, file: str) -> str:
    """Return a sentence on where and when, with the record's name."""
    return f"{'; '.join(in_words(record.conditions))} (`{file}`)."


def table(head: Iterable[str], rows: Iterable[Iterable[str]], others: str | None = "---:") -> str:
    """Return Markdown; the first column's cells to the left, the others as told (None: to the left, in the
    shortest spelling)."""
    head = list(head)
    rule = "---|" * len(head) if others is None else f" {' | '.join(['---', *[others] * (len(head) - 1)])} |"
    line, *lines = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return "\n".join([line, f"|{rule}", *lines])
