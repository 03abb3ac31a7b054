"""A setting as a command line shows it. Imports no torch, so that --help is instant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Option:
    """One setting: its default, its help, what makes its value of a word (`bool`: a switch), the values
    that it may have, the word that stands for the value in the help, the help's group, and whether only
    --help-all shows it."""

    default: Any
    help: str
    kind: Callable[[str], Any] = str
    choices: Sequence[str] | None = None
    metavar: str | None = None
    group: str = "run"
    advanced: bool = False


def option(
    default: Any,
    help: str,
    kind: Callable[[str], Any] = str,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    group: str = "run",
    advanced: bool = False,
) -> Any:
    """Return a dataclass field that a command line sets, as `Option` describes it."""
    described = Option(default, help, kind, choices, metavar, group, advanced)
    return dataclasses.field(default=default, metadata={"option": described})
