"""The content that a patch's header may have: names, lines of digests, and metadata within limits. Imports no
torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from fastbn.errors import UsageError
from fastbn.files import shown
from fastbn.settings.saved import SHA256, text

MOST_METADATA = 1 << 16  # characters of its JSON
DEEPEST = 8  # lists and objects in each other
SIDE = r"(?:0|[1-9][0-9]{0,9})"  # one extent of a shape
DIGESTS = {"float64": 4, "float32": 3, "bfloat16": 2}  # of a line: of the tensor, and of its roundings
LINE = re.compile(rf"[a-z][a-z0-9_]{{1,30}} (?:scalar|{SIDE}(?:x{SIDE}){{0,7}})(?: [0-9a-f]{{12}}){{1,4}}")
KEYS = ("fastbn", "network", "trains", "entries", "frozen", "metadata")


def check(said: Any, where: str, remedy: str = "use another copy") -> None:
    """Raise UsageError where this is not a patch's header."""

    def wrong(what: str) -> UsageError:
        return UsageError(f"{where}: its header {what}; {remedy}")

    if not isinstance(said, dict):
        raise wrong("is no JSON object")
    if lacking := [key for key in KEYS if key not in said]:
        raise wrong(f"says nothing of {', '.join(lacking)}")
    if not text(said["fastbn"]) or not text(said["network"]):
        raise wrong("does not name the network and the version that it is of")
    for key in ("trains", "entries"):
        if not _names(said[key]):
            raise wrong(f"has another {key} than a list of names, none twice: {shown(repr(said[key]), 60)}")
    frozen = said["frozen"]
    tensors = frozen.get("tensors") if isinstance(frozen, dict) else None
    if not isinstance(tensors, dict) or type(frozen.get("sha256")) is not str:
        raise wrong("does not describe the frozen weights")
    if not SHA256.fullmatch(frozen["sha256"]) or not _names(list(tensors)):
        raise wrong("does not give the frozen weights' SHA-256")
    for name, line in tensors.items():
        if type(line) is not str or not LINE.fullmatch(line) or not _complete(line):
            raise wrong(f"says of {shown(name, 60)} {shown(repr(line), 60)}, which is no digest")
    check_metadata(said["metadata"], f"{where}: its header")


def check_metadata(metadata: Any, where: str) -> None:
    """Raise UsageError where this is not a JSON object within the limits: what a caller says of a patch."""
    if not isinstance(metadata, dict) or not _plain(metadata, DEEPEST):
        raise UsageError(
            f"{where}: metadata has to be texts, finite numbers, booleans, None, lists and dicts of them, "
            f"got {shown(repr(metadata), 60)}"
        )
    if (long := len(json.dumps(metadata))) > MOST_METADATA:
        raise UsageError(f"{where}: metadata of {long:,} characters is more than {MOST_METADATA:,}; say less")


def _complete(line: str) -> bool:
    dtype, _, *digests = line.split()
    return len(digests) == DIGESTS.get(dtype, 1)


def _names(value: Any) -> bool:
    return type(value) is list and all(map(text, value)) and len(set(value)) == len(value)


def _plain(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(map(text, value)) and _all_plain(value.values(), depth)
    if isinstance(value, list):
        return depth > 0 and _all_plain(value, depth)
    if isinstance(value, str):
        return len(value) <= MOST_METADATA
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or type(value) is bool or (type(value) is int and abs(value) < 2**63)


def _all_plain(values: Iterable[Any], depth: int) -> bool:
    return all(_plain(one, depth - 1) for one in values)
