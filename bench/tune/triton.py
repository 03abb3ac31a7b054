"""The Triton engine's table, fastbn/engine/triton/tuning.json, row by row: what is measured on this GPU takes
the place of what the table held of its capability, and nothing else changes."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.gpu.measure import CAPABILITY, DEVICE
from bench.records.conditions import conditions
from bench.tune import convolutions, launches, rolling
from bench.tune.compete import ahead
from fastbn.engine.triton import tuning_table

PARTS = ("rolling", "convolutions", "launches")  # each is measured with what the ones before it found
# what tells a row from the others, and what measures it
Task = tuple[dict[str, Any], Callable[[], dict[str, Any]]]


def tune(
    images: int, rounds: int, parts: tuple[str, ...] = PARTS, seconds: float = math.inf
) -> Iterator[Any]:
    """Yield the table, again after every row. What there is no time for stays as it was, and is named."""
    deadline = time.monotonic() + seconds
    table: dict[str, Any] = json.loads(tuning_table.TABLE.read_text(encoding="utf-8"))
    for part in parts:
        late = []
        for key, measure in _tasks(part, images, rounds):
            if time.monotonic() > deadline:
                late.append(key)
                continue
            try:
                row = measure()
            except LookupError as error:
                print(f"{part}: {key} stays as it was: {error}")
                continue
            others = (other for other in table[part] if any(other[name] != key[name] for name in key))
            table[part] = [*others, row]
            table["conditions"][str(CAPABILITY)] = {**conditions(DEVICE), "images": images}
            yield table
        if late:
            print(f"{part}: no time was left for {len(late)} rows, which stay as they were: {late}")


def _tasks(part: str, images: int, rounds: int) -> list[Task]:
    if part == "launches":
        measure = functools.partial(launches.row, images, rounds)
        # the interpreter launches nothing
        return [({"capability": CAPABILITY}, measure)] if CAPABILITY else []
    module, keys = (rolling, rolling.keys()) if part == "rolling" else (convolutions, convolutions.layers())
    ahead(module.compiled, [(key, images) for key in keys])
    return [(dataclasses.asdict(key), functools.partial(module.row, key, images, rounds)) for key in keys]
