"""fastbn COMMAND …, or python -m fastbn COMMAND …: every command by its name. Imports no torch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence

from fastbn.choices import one_of
from fastbn.cli import command
from fastbn.version import VERSION

COMMANDS = {
    "train": ("fastbn.train", "train a network, its BatchNorm layers only"),
    "evaluate": ("fastbn.evaluate", "test the network of a run, or of a file"),
    "analyze": ("fastbn.analyze", "write a report on trained networks"),
    "experiments": ("fastbn.experiments.__main__", "the papers' experiments, one command each"),
    "patch": ("fastbn.patch", "the few KB that turn one network into another"),
    "doctor": ("fastbn.doctor", "describe this machine, for an issue report"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names and return its exit code, or 2 where it names none."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--version"]:
        return command.run(lambda: _said(f"fastbn {VERSION}"))
    if not words or words[0] in ("-h", "--help", "help"):
        return command.run(lambda: _said(usage()))
    known = commands()
    if words[0] not in known:
        return command.run(lambda: len(one_of("the command", words[0], known)))
    return int(importlib.import_module(known[words[0]][0]).main(words[1:]))


def commands() -> dict[str, tuple[str, str]]:
    """Return the commands that this installation has: module and what it does, by name."""
    return {name: one for name, one in COMMANDS.items() if importlib.util.find_spec(one[0]) is not None}


def usage() -> str:
    """Return what fastbn --help says."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {does}" for name, (_, does) in commands().items()]
    examples = ["train --depth 14", "evaluate runs/resnet14-cifar10-bn-s0", "train --help"]
    examples = [f"  fastbn {words}" for words in examples]
    return "\n".join(["usage: fastbn COMMAND [options]", "", *lines, "", "examples:", *examples])


def _said(text: str) -> int:
    command.show(text)
    return 0


if __name__ == "__main__":
    command.leave(main())
