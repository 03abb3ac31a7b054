"""The tables of docs/adaptation.md, from the newest records of bench.adaptation."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.records.between import conditions, put, table
from bench.records.rows import Record

NAMES = {"none": "as trained", "adabn": "AdaBN", "alphabn": "α-BN", "tent": "Tent"}
BY_SIZE = ("none", "adabn", "alphabn")  # the methods that learn nothing from one batch for the next
ENGINES = {"stock": "stock", "fused": "auto"}


def write(page: Path, results: Path) -> None:
    """Put the tables of the newest records into the page. Raises UsageError where one has no place there."""
    for name, make in (("adaptation", errors), ("adaptation-seconds", seconds)):
        put(page, name, f"{name}-resnet*.json", make, results)


def errors(record: Record, file: str) -> str:
    """Return the errors in percent by corruption and severity, their means, and those by batch size."""
    network, settings = record.conditions["network"], record.conditions["settings"]
    found: dict[str, dict[str, float]] = {}
    for row in record.rows:
        found.setdefault(row.case, {})[row.provider] = 1 - (row.accuracy or 0.0)
    whole = {case: own for case, own in found.items() if "batch" not in case}
    worse = [own for case, own in whole.items() if case != "clean"]
    lines = [[case, *(_percent(own[name]) for name in NAMES)] for case, own in whole.items()]
    lines.append(["**mean of the corrupted**", *(f"**{_percent(_mean(worse, name))}**" for name in NAMES)])
    sizes: dict[str, list[dict[str, float]]] = {}
    for case, own in found.items():
        if "batch" in case:
            sizes.setdefault(case.partition(", batch ")[2], []).append(own)
    few = next(row.more for row in record.rows if "batch" in row.case) or {}
    images = (record.rows[0].more or {})["images"]
    tried = (settings["tried_alpha"], settings["tried_lr"])
    alphas, rates = (", ".join(f"{float(value):g}" for value in values) for values in tried)
    said = (
        f"ResNet-{network['depth']}, every weight trained on clean {network['dataset']} "
        f"({_recipe(network)}): error on {images:,} test images in percent, in batches of "
        f"{record.rows[0].batch_size}; α = {settings['alpha']:g} of {alphas} and Tent's Adam "
        f"{settings['lr']:g} of {rates}, chosen on corrupted training images. {conditions(record, file)}"
    )
    by_size = f"By the size of the batch, mean of the corruptions at severity 2, {few['images']:,} images:"
    small = [[size, *(_percent(_mean(own, name)) for name in BY_SIZE)] for size, own in sizes.items()]
    head = ["batch", *(NAMES[name] for name in BY_SIZE)]
    return "\n\n".join([said, table(["images", *NAMES.values()], lines), by_size, table(head, small)])


def seconds(record: Record, file: str) -> str:
    """Return the microseconds of an image, stock and fused."""
    found = {row.provider: row for row in record.rows}
    size, lines = record.rows[0].batch_size or 1, []
    for method, name in NAMES.items():
        stock, fused = (1e6 * (found[f"{method} {engine}"].seconds or 0.0) / size for engine in ENGINES)
        lines.append([name, f"{stock:.0f}", f"{fused:.0f}", f"{stock / fused:.2f}×"])
    said = f"Microseconds an image in batches of {size}, medians of {record.rows[0].n} rounds in turn."
    head = ["", "stock, µs", "fused, µs", "stock / fused"]
    return f"{said} {conditions(record, file)}\n\n" + table(head, lines)


def _recipe(network: dict[str, Any]) -> str:
    own = f"{network['optimizer']} {network['lr']:g}, {network['schedule']}, seed {network['seed']}"
    before = network.get("before")
    if before is None:
        return f"{network['epochs']} epochs, {own}"
    first = f"{before['trained_epochs']:g} of {before['epochs']} epochs, {before['optimizer']}"
    return f"{first} {before['lr']:g}, {before['schedule']}; then {network['epochs']} of {own}"


def _mean(rows: list[dict[str, float]], name: str) -> float:
    return statistics.fmean(row[name] for row in rows)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
