"""Progress on stderr: a bar on a terminal, one line an epoch elsewhere, nothing where it was not asked for.
One of several networks tells its name in each line, or has a file for its lines. Where it can't be shown it
stops, and the run goes on."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

from fastbn.command import Unfailing, say


class Progress:
    def __init__(self, epochs: int, shown: bool, name: str = "", file: TextIO | None = None):
        self.epochs, self.shown = epochs, shown
        self._name, self._file = name, file
        self._bar: Any = None

    def say(self, text: str) -> None:
        if self.shown and not say(self._name + text, self._file):
            self.shown = False

    def start(self, epoch: int, images: int, done: int) -> None:
        """An epoch begins, `done` of its images already trained on."""
        if self.shown and not self._name and self._file is None and Unfailing(sys.stderr).isatty():
            width = len(str(self.epochs))
            self._bar = tqdm(
                total=images,
                initial=done,
                desc=f"epoch {epoch + 1:{width}}/{self.epochs}",
                unit=" images",
                leave=False,
                file=Unfailing(sys.stderr),
            )

    def advance(self, images: int) -> None:
        if self._bar is not None:
            self._bar.update(images)

    def testing(self) -> None:
        """The epoch's training is over, its evaluation begins."""
        if self._bar is not None:
            self._bar.set_postfix_str("testing")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def finish(self, line: dict[str, Any]) -> None:
        """The epoch is over; `line` is its metrics."""
        self.close()
        width = len(str(self.epochs))
        text = f"epoch {line['epoch'] + 1:{width}}/{self.epochs}"
        text += f"  train loss {line['train_loss']:.4f} accuracy {line['train_accuracy']:.3f}"
        for name in ("val", "test"):
            if f"{name}_loss" in line:
                text += f"  {name} loss {line[f'{name}_loss']:.4f} accuracy {line[f'{name}_accuracy']:.4f}"
        self.say(f"{text}  lr {line['lr']:.2g}  {line['images_per_second']:,.0f} images/s")
