"""The content that a run's files may have, one function for each kind of file: names that the program knows
and numbers within limits.

Each returns what it was given, or raises a UsageError of one line that names the file and the key. What such
a file says never names a module to import. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fastbn.cli.options import Option
from fastbn.errors import UsageError
from fastbn.files import AnyPath, look, parsed, read, read_json, reason, shown
from fastbn.models.families import Spec, resolve
from fastbn.recipe import FLOAT32_MAX, epoch_list
from fastbn.settings.config import Config, known

LONGEST_TEXT = 4096  # characters
MOST_METRICS = 1 << 28  # bytes of a metrics.jsonl
DAMAGED = "the folder is damaged, choose another --out"
BESIDE = ("ranks",)  # what config.json says beside the settings
Check = Callable[[Any], bool]


def count(value: Any) -> bool:
    """Return whether it is an integer from 0 on that fits into 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def number(value: Any) -> bool:
    """Return whether it is a number: a float of float32's range, or an integer that fits into 64 bits."""
    return (type(value) is float and abs(value) <= FLOAT32_MAX) or (type(value) is int and abs(value) < 2**63)


def finite(value: Any) -> bool:
    """Return whether it is finite, as a sum of losses in float64 is."""
    return (type(value) is float and math.isfinite(value)) or number(value)


def loss(value: Any) -> bool:
    """Return whether it is a loss: that of an evaluation may be infinite, or no number."""
    return type(value) is float or number(value)


def positive(value: Any) -> bool:
    """Return whether it is a number from 0 on."""
    return number(value) and value >= 0


def fraction(value: Any) -> bool:
    """Return whether it is a number from 0 to 1."""
    return number(value) and 0 <= value <= 1


def text(value: Any) -> bool:
    return type(value) is str and len(value) <= LONGEST_TEXT and "\0" not in value


def maybe(check: Check) -> Check:
    """Return the check of a value that may be None instead."""
    return lambda value: value is None or check(value)


def every(check: Check) -> Check:
    """Return the check of a list of such values."""
    return lambda value: type(value) is list and all(map(check, value))


def _norms(value: Any) -> bool:
    """Return whether it is γ and β in a few numbers a layer, of equally many layers."""
    if type(value) is not dict or not all(every(number)(one) for one in value.values()):
        return False
    return len({len(one) for one in value.values()}) <= 1


EPOCH: dict[str, Check] = {
    "epoch": count,
    "step": count,
    "lr": positive,
    "seconds": positive,
    "images_per_second": positive,
    "evaluation_seconds": positive,
    "peak_memory_bytes": count,
    "planned_memory_bytes": maybe(count),
    "energy_joules": maybe(number),
    "norms": _norms,
    **{f"{part}_loss": loss for part in ("train", "val", "test")},
    **{
        f"{part}_{what}": fraction
        for part in ("train", "val", "test")
        for what in ("accuracy", "top5_accuracy")
    },
}
REPORTED = ("train_accuracy", "test_loss", "test_accuracy", "images_per_second", "peak_memory_bytes")
FULL_EPOCH = ("epoch", "lr", "seconds", *REPORTED)  # what a run's summary is made of
SUMMARY: dict[str, Check] = {
    **{name: EPOCH[name] for name in (*REPORTED, "test_top5_accuracy", "planned_memory_bytes")},
    **dict.fromkeys(("epochs", "parameters", "trained_parameters", "ranks", "replicas"), count),
    **dict.fromkeys(("dataset", "dataset_why", "engine", "engine_why", "device", "date"), text),
    **dict.fromkeys(("training_seconds", "seconds_of_this_process"), positive),
    "versions": lambda value: (
        type(value) is dict and all(text(key) and text(one) for key, one in value.items())
    ),
}
SHA256 = re.compile("[0-9a-f]{64}")


def digest(value: Any) -> bool:
    """Return whether it is a SHA-256 in hexadecimal."""
    return type(value) is str and SHA256.fullmatch(value) is not None


SOURCE: dict[str, Check] = {
    "kind": lambda value: value in ("seed", "file", "stored"),
    "sha256": digest,
    "file": maybe(text),
    "file_sha256": maybe(digest),
}
POSITION: dict[str, Check] = {
    "epoch": count,
    "step": count,
    "loss": finite,
    "correct": count,
    "images": count,
}
HEADER: dict[str, Check] = {
    "trains": every(text),
    "entries": every(text),
    "epoch": count,
    "val_accuracy": fraction,
}


def json_file(path: AnyPath, remedy: str = DAMAGED) -> dict[str, Any]:
    """Return the object that a run's JSON file holds."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable as JSON ({reason(error)}); {remedy}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not a run's file; {remedy}")
    return content


def settings(content: Any, where: object, remedy: str = DAMAGED) -> dict[str, Any]:
    """Check the settings in a config.json, or in a checkpoint: those that are there are a Config's, of its
    types and within its limits."""
    options = known()
    checks = {name: maybe(_kind(one)) if one.default is None else _kind(one) for name, one in options.items()}
    _checked(content, checks | dict.fromkeys(BESIDE, count), where, remedy, known_alone=True)
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in content.items()
        if name in options
    }
    try:
        Config.of(given)
    except UsageError as error:
        raise UsageError(f"{where}: {shown(error)}; {remedy}") from None
    return content


def _kind(one: Option) -> Check:
    """Return what a setting's value may be, by what the command line takes for it."""
    kind, choices = one.kind, one.choices
    if choices is not None:
        return lambda value: value in choices
    if kind is str:
        return text
    if kind is bool:
        return lambda value: type(value) is bool
    if kind is float:
        return number
    if kind is int:
        return count
    return every(count) if kind is epoch_list else lambda value: value == "auto" or count(value)


def summary(path: Path, needed: Iterable[str] = (), remedy: str = DAMAGED) -> dict[str, Any]:
    """Return a summary.json."""
    return _checked(json_file(path, remedy), SUMMARY, path, remedy, needed)


def lines(
    path: Path,
    needed: Iterable[str],
    most: int | None = None,
    being_written: bool = False,
    remedy: str = DAMAGED,
) -> list[dict[str, Any]]:
    """Return the first `most` lines of a metrics.jsonl, an epoch each; none where there is no such file.
    `being_written`: without the last one where it is no JSON yet."""
    if look(path) is None:
        return []
    try:
        texts = read(path, MOST_METRICS).decode("utf-8", "replace").split("\n")
    except OSError as error:
        raise UsageError(f"{path}: {reason(error)}; {remedy}") from None
    texts = texts[:-1] if not texts[-1] else texts
    epochs = []
    for number, one in enumerate(texts[:most], 1):
        where = f"{path}: line {number}"
        try:
            value = parsed(one)
        except ValueError:
            if being_written and number == len(texts):
                break
            raise UsageError(f"{where} is no epoch's; {remedy}") from None
        epochs.append(_checked(value, EPOCH, where, remedy, needed))
        if "epoch" in value and value["epoch"] != number - 1:
            raise UsageError(f"{where} is of epoch {value['epoch'] + 1}; {remedy}")
    return epochs


def header(content: Any, where: object, remedy: str = "use another copy") -> dict[str, Any]:
    """Check a checkpoint's header, its model's Spec within the limits of `resolve`. What `fastbn.save` was
    given beside is the caller's."""
    checks = HEADER | {
        "model": lambda value: _spec(value, where, remedy),
        "source": lambda value: _part(value, SOURCE, "source", where, remedy, ("kind", "sha256")),
        "position": lambda value: _part(value, POSITION, "position", where, remedy, POSITION),
        "config": lambda value: bool(settings(value, f"{where}: config", remedy)) or value == {},
    }
    return _checked(content, checks, where, remedy, ("model", "source", "trains"))


def _part(
    value: Any, checks: Mapping[str, Check], name: str, where: object, remedy: str, needed: Iterable[str]
) -> bool:
    _checked(value, checks, f"{where}: {name}", remedy, needed, known_alone=True)
    return True


def _spec(value: Any, where: object, remedy: str) -> bool:
    """Return whether the Spec is one that `resolve` makes: it refuses what is out of its limits."""
    fields = {field.name: field for field in dataclasses.fields(Spec)}
    kinds = {"int": count, "float": number, "bool": lambda one: type(one) is bool, "str": text}
    needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    _part(
        value,
        {name: kinds[str(field.type)] for name, field in fields.items()},
        "model",
        where,
        remedy,
        needed,
    )
    try:
        return resolve(**value) == Spec(**value)
    except UsageError as error:
        raise UsageError(f"{where}: model: {shown(error)}; {remedy}") from None


def _checked(
    content: Any,
    checks: Mapping[str, Check],
    where: object,
    remedy: str,
    needed: Iterable[str] = (),
    known_alone: bool = False,
) -> dict[str, Any]:
    """Return the object where all that is needed is in it, and each key that is known holds what it may;
    others pass unless `known_alone`."""
    if not isinstance(content, dict):
        raise UsageError(f"{where}: should be a JSON object, found {type(content).__name__}; {remedy}")
    if lacking := [name for name in needed if name not in content]:
        raise UsageError(f"{where} says nothing of {', '.join(lacking)}; {remedy}")
    if known_alone and (unknown := [name for name in content if name not in checks]):
        raise UsageError(
            f"{where} says {shown(unknown[0], 40)!r}, which this version of fastbn does not know; {remedy}"
        )
    for name, value in content.items():
        if name in checks and not checks[name](value):
            raise UsageError(f"{where}: {name} can't be {shown(repr(value), 60)}; {remedy}")
    return content
