"""The kept results of a self-check: read within bounds, written whole or not at all, made by one process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastbn import files
from fastbn.files.lock import locked


@contextlib.contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Hold the lock beside a file; where the folder can't be written, nothing is held."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(f"{path}.lock", 0o600))
        yield


def kept(path: Path, key: dict[str, Any]) -> dict[str, str] | None:
    """Return the results that lie there for this key; None where there are none, or none that can be read."""
    try:
        said = files.read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(said, dict) or said.get("key") != key or not isinstance(said.get("results"), dict):
        return None
    results = said["results"]
    sound = results and all(isinstance(name, str) and isinstance(what, str) for name, what in results.items())
    return results if sound else None


def keep(path: Path, key: dict[str, Any], results: dict[str, str]) -> None:
    """Write the results. A folder that can't be written keeps nothing, and the next process checks anew."""
    with contextlib.suppress(OSError):
        files.write(path, json.dumps({"key": key, "results": results}, indent=1).encode())
