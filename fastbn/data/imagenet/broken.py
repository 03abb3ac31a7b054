"""Images that can't be read: named on stderr, a few of them, and counted; too many end the run."""

from __future__ import annotations

import sys

from fastbn.errors import UsageError

NAMED = 5  # lines on stderr
FRACTION = 100  # one in so many may be broken
FLOOR = 2  # but so many always may


class Broken:
    """The broken samples of `n`, by what names them. Raises UsageError for the first that is one too many:
    more than 1% and more than two, or all."""

    def __init__(self, n: int, what: str):
        self._allowed, self._n, self._what = min(max(FLOOR, n // FRACTION), n - 1), n, what
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def note(self, name: str, reason: str) -> None:
        if name in self._reasons:
            return
        self._reasons[name] = reason
        if len(self) > self._allowed:
            examples = "; ".join(f"{name} ({reason})" for name, reason in list(self._reasons.items())[-3:])
            raise UsageError(
                f"{len(self)} of the {self._n:,} {self._what} can't be read, up to {self._allowed:,} are "
                f"skipped: {examples}; "
                "repair or remove them"
            )

    def say(self, said: set[str]) -> None:
        """Name on stderr those that are new, up to NAMED of all that were ever `said`, which grows."""
        for name, reason in self._reasons.items():
            if name not in said and len(said) <= NAMED:
                said.add(name)
                line = (
                    f"skipped {name} ({reason})"
                    if len(said) <= NAMED
                    else "more are skipped, without their names"
                )
                print(f"fastbn: {line}", file=sys.stderr, flush=True)
