"""Command lines: help in short groups with examples, and errors of one line that name the nearest. Imports no
torch."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from fastbn.cli import command
from fastbn.errors import UsageError
from fastbn.files import shown
from fastbn.version import VERSION

COLUMNS = 80


def program(module: str) -> str:
    """Return what a command is called where it was started: "fastbn train", or "python -m fastbn.train"."""
    folder, name = os.path.split(sys.argv[0])
    if name == "fastbn":
        return f"fastbn {module}"
    if name == "__main__.py" and os.path.basename(folder) == "fastbn":
        return f"python -m fastbn {module}"
    return f"python -m fastbn.{module}"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageErrors: one line, like every other wrong argument. No option is
    taken by the first letters of its name.

    name: the command's, as `program` takes it. examples: (its arguments, what it does), shown below the
    options. An argument that is added with `advanced=True` is shown by --help-all alone."""

    def __init__(
        self,
        name: str = "",
        examples: Sequence[tuple[str, str]] = (),
        prog: str | None = None,
        **settings: Any,
    ):
        prog = program(name) if prog is None else prog
        if examples:
            lines = [
                line for words, does in examples for line in (f"  {prog} {words}".rstrip(), f"      {does}")
            ]
            settings["epilog"] = "\n".join(["examples:", *lines])
        super().__init__(prog, formatter_class=_Formatter, allow_abbrev=False, add_help=False, **settings)
        about = self.add_argument_group("help")
        about.add_argument("-h", "--help", action=_Help, help="show this and exit")
        about.add_argument(
            "--version", action="version", version=f"fastbn {VERSION}", help="show it and exit"
        )
        self._about, self._advanced = about, dict[argparse.Action, str]()

    def add(self, group: Any, *flags: str, advanced: bool = False, **settings: Any) -> None:
        """Add an option to a group of the help; an advanced one is shown by --help-all alone."""
        added = group.add_argument(*flags, **settings)
        if not advanced:
            return
        if not self._advanced:
            more = "show the advanced options too, and exit"
            self._about.add_argument("--help-all", action=_Help, const=True, help=more)
        self._advanced[added], added.help = added.help, argparse.SUPPRESS

    def format_help(self) -> str:
        """Return the help as argparse does; what the help itself takes comes last."""
        others = [group for group in self._action_groups if group is not self._about]
        self._action_groups = [*others, self._about]
        return super().format_help()

    def reveal(self) -> None:
        """Show the advanced options too."""
        for action, help in self._advanced.items():
            action.help = help

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{shown(message, 300)}; see --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; an option that is none is told with the nearest."""
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            word = next((word for word in rest if word.startswith("-")), rest[0]).partition("=")[0]
            near = difflib.get_close_matches(word[:60], list(self._flags()), n=1)
            said = f"unrecognized arguments: {' '.join(rest)}"
            self.error(said + (f"; nearest: {near[0]}" if near else ""))
        return parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does. Raises UsageError too for a word that no path can be: one that is not
        UTF-8, or has a NUL in it."""
        words = list(sys.argv[1:] if args is None else args)
        for word in words:
            if "\0" in word or any("\ud800" <= c <= "\udfff" for c in word):
                self.error(f"an argument is not UTF-8: {shown(word)}")
        return super().parse_known_args(words, namespace)

    def _flags(self) -> Iterator[str]:
        """Yield every option's names, those of subcommands too."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._flags()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            near = difflib.get_close_matches(str(value)[:60], [str(one) for one in action.choices or ()], n=1)
            error.message += f"; nearest: {near[0]}" if near else ""
            raise

    def _print_message(self, message: str, file: Any = None) -> None:
        """Show --help as any result."""
        command.show(message.removesuffix("\n"))


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Lines of at most 80 columns; the examples as they are."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26, width=COLUMNS - 1)


class _Help(argparse.Action):
    """Show the help, `const`: with the advanced options, and exit."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, const: bool = False, help: str | None = None
    ):
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs=0, const=const, default=argparse.SUPPRESS, help=help
        )

    def __call__(self, parser: Any, *_: Any) -> None:
        if self.const:
            parser.reveal()
        parser.print_help()
        parser.exit()
