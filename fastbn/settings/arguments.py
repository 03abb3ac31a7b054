"""The command line of a run: its arguments as a Config. Imports no torch, so that --help is instant."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastbn.cli.parser import Parser
from fastbn.models.families import ONLY_DEPTH
from fastbn.settings.config import NOT_SAVED, Config, known
from fastbn.settings.saved import json_file, settings

GROUPS = ("network", "data", "recipe", "machine", "run")  # of --help, each of at most a dozen
LONGEST_CHOICES = 44  # characters of an option's values that stand beside its name
EXAMPLES = (
    ("--depth 14", "CIFAR-10 where it can be had, else the digits; the paper's recipe"),
    ("--depth 866 --dataset cifar10 --explain", "what would run, in how much memory"),
    ("--resume --out runs/resnet14-cifar10-bn-s0", "go on with that run"),
)


def parse(arguments: Sequence[str] | None, name: str = "train", description: str | None = None) -> Config:
    """Return the command line's Config; --help prints and exits. With --resume, what is not given is that of
    the run in --out. Raises UsageError for a wrong argument."""
    parser = Parser(name, EXAMPLES, description=description)
    parser.usage = f"{parser.prog} --depth N [options]"
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for setting, one in known().items():
        help = (one.help if one.default in (None, False) else f"{one.help} ({one.default})").replace(
            "%", "%%"
        )
        settings: dict[str, Any] = {"help": help, "action": "store_true"}
        if one.kind is not bool:
            metavar, listed = one.metavar, ", ".join(one.choices or ())
            if len(listed) > LONGEST_CHOICES:
                metavar, settings["help"] = "NAME", f"{help}: {listed}"
            elif metavar is None and one.choices is None:
                metavar = "N" if one.kind is int else "X"
            settings = {
                "help": settings["help"],
                "type": one.kind,
                "choices": one.choices,
                "metavar": metavar,
            }
        flag = "--" + setting.replace("_", "-")
        parser.add(groups[one.group], flag, advanced=one.advanced, default=argparse.SUPPRESS, **settings)
    given = vars(parser.parse_args(arguments))
    if given.get("resume") and given.get("out"):
        path = Path(given["out"]) / "config.json"
        given = _saved(path) | given
        if "depth" not in given and given.get("family") not in ONLY_DEPTH:
            parser.error(
                f"--resume without --depth needs the settings in {path}, and there are none; give the run's "
                "own arguments"
            )
    if given.get("depth") is None and given.get("family") not in ONLY_DEPTH:
        parser.error("the following arguments are required: --depth")
    return Config.of(given)


def _saved(path: Path) -> dict[str, Any]:
    """Return the settings in a run's config.json; none where nothing of that name lies there, which the run
    tells of."""
    if not os.path.lexists(path):
        return {}
    names = known().keys() - NOT_SAVED
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings(json_file(path), path).items()
        if name in names
    }
