"""Command lines whose errors are one line, like every other wrong argument. Imports no torch."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from fastbn import command
from fastbn.errors import UsageError
from fastbn.files import shown


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageErrors: one line, like every other wrong argument."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{shown(message, 300)}; see --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's. Raises UsageError too for a word that no path can be: one that is not UTF-8, or
        has a NUL in it."""
        words = list(sys.argv[1:] if args is None else args)
        for word in words:
            if "\0" in word or any("\ud800" <= c <= "\udfff" for c in word):
                self.error(f"an argument is not UTF-8: {shown(word)}")
        return super().parse_known_args(words, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Shows --help as any result."""
        command.show(message.removesuffix("\n"))
