"""The names a caller chooses from, and what a wrong one is told. Imports no torch, so a command line can list them at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from fastbn.errors import UsageError

ENGINES = ("auto", "triton", "native", "reference", "stock")
DEVICES = ("auto", "cuda", "cpu")
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "mixed")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("multistep", "cosine", "constant")
BN_STATS = ("batch", "frozen")
TRAIN_MODES = ("bn", "gamma", "beta", "output", "all", "none")


def one_of(what: str, value: object, known: Iterable[str]) -> str:
    """`value` where it is one of `known`; else a UsageError that names the nearest and all of them."""
    names = tuple(known)
    if isinstance(value, str) and value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1)
    raise UsageError(f"{what} must be one of {', '.join(names)}, got {value!r}" + (f"; nearest: {near[0]}" if near else ""))


def train_names(train: str) -> tuple[str, ...]:
    """The names in `train`, as in "gamma+output"; UsageError for one that is not in TRAIN_MODES."""
    if not isinstance(train, str):
        raise UsageError(f"train must be names from {', '.join(TRAIN_MODES)} joined by '+', got {train!r}")
    return tuple(one_of("train", name.strip(), TRAIN_MODES) for name in train.split("+"))
