"""A page's part between two markers, which a command writes."""

from __future__ import annotations

from pathlib import Path

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
