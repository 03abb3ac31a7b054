"""The names a caller chooses from, and what a wrong one is told. Imports no torch, so a command line can
list them at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import NamedTuple

from fastbn.errors import UnknownSetting, UsageError
from fastbn.files import shown

ENGINES = ("auto", "triton", "native", "reference", "stock")
DEVICES = ("auto", "cuda", "cpu", "xla")
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "mixed")
STATES = {"sgd": 1, "adam": 2}  # an optimizer's vectors of state, each as long as what trains
OPTIMIZERS = tuple(STATES)
SCHEDULES = ("multistep", "cosine", "constant")
BN_STATS = ("batch", "frozen")
AUGMENTATIONS = ("flip", "crop", "brightness")
PIXELS = ("standard", "unit")
TRAIN_MODES = ("bn", "gamma", "beta", "output", "shortcut", "random", "all", "all-bn", "none")
TRAINS_CONVOLUTIONS = frozenset({"shortcut", "random", "all", "all-bn"})
# a selector's characters: of module names, and of glob patterns over them
WHERE = re.compile(r"[\w.*?\[\]!-]+")


class Term(NamedTuple):
    """One name of what trains, as in "random=2@layer1"."""

    name: str
    number: int | None = None  # the 2 of random=2
    where: str | None = None  # the layers that the selector after @ names

    def __str__(self) -> str:
        return (
            self.name
            + (f"={self.number}" if self.number is not None else "")
            + (f"@{self.where}" if self.where is not None else "")
        )


def one_of(what: str, value: object, known: Iterable[str]) -> str:
    """Return `value` where it is one of `known`; else a UsageError that names the nearest and all of them."""
    names = tuple(known)
    if isinstance(value, str) and value in names:
        return value
    said = shown(repr(value), 60)
    near = difflib.get_close_matches(str(value)[:60], names, n=1)
    raise UsageError(
        f"{what} must be one of {', '.join(names)}, got {said}" + (f"; nearest: {near[0]}" if near else "")
    )


def unknown_setting(what: str, given: Iterable[str], known: Iterable[str]) -> UnknownSetting:
    """Return the error for settings that `what` does not take: it names the first, and the nearest that it
    does take."""
    name, names = next(iter(given)), list(known)
    near = difflib.get_close_matches(name[:60], names, n=1)
    said = f"; nearest: {near[0]}" if near else f"; it has {', '.join(names)}"
    return UnknownSetting(f"{what} has no setting {shown(name, 60)!r}{said}")


def augmentations(how: str | None) -> tuple[str, ...] | None:
    """Return the names in `how`, as in "crop+brightness"; () for none, None where the data set decides.
    UsageError for another."""
    if how is None:
        return None
    return (
        ()
        if how == "none"
        else tuple(one_of("augment", name.strip(), AUGMENTATIONS) for name in how.split("+"))
    )


def train_terms(train: str) -> tuple[Term, ...]:
    """Return the terms of `train`, as in "bn@first-9+output"; UsageError for a name that is not in
    TRAIN_MODES, a number or a selector that cannot be."""
    if not isinstance(train, str):
        raise UsageError(f"train must be names from {', '.join(TRAIN_MODES)} joined by '+', got {train!r}")
    return tuple(_term(part.strip()) for part in train.split("+"))


def _term(text: str) -> Term:
    rest, at, where = text.partition("@")
    name, equals, count = rest.partition("=")
    one_of("train", name, TRAIN_MODES)
    if name == "random" and not (count.isdecimal() and int(count) > 0):
        raise UsageError(
            "train random=K needs the number of weights a channel that train, at least 1 (random=2), got "
            f"{text!r}"
        )
    if name != "random" and equals:
        raise UsageError(f"train {name} takes no number, got {text!r}; random=K alone does")
    if at and not WHERE.fullmatch(where):
        raise UsageError(
            f"train {name}@… needs first-N, last-N, or a module's name or pattern after the @, got {text!r}"
        )
    return Term(name, int(count) if equals else None, where if at else None)
