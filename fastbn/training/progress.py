"""Progress on stderr: a bar on a terminal, one line per epoch elsewhere, nothing where it was not asked for.

One of several networks tells its name in each line, or has a file for its lines. Where it can't be shown it
stops, and the run goes on."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

from fastbn.cli.command import Unfailing, say
from fastbn.training.totals import Totals

PAUSE = 0.5  # seconds between two looks at the loss, for which a device is waited for
BAR = "{desc} {percentage:3.0f}%|{bar}|{postfix}"


class Progress:
    """The lines or the bar that a training shows while it runs. `epochs`: of the whole training."""

    def __init__(self, epochs: int, shown: bool, name: str = "", file: TextIO | None = None):
        self.epochs, self.shown = epochs, shown
        self._name, self._file = name, file
        self._bar: Any = None
        self._begun = self._looked = self._epoch_begun = 0.0
        self._finished, self._whole = 0, 0.0  # epochs, and the seconds that one of them took
        self._left = 0  # epochs after this one

    @property
    def on_terminal(self) -> bool:
        """Return whether a person looks on, at this network alone."""
        return self.shown and not self._name and self._file is None and Unfailing(sys.stderr).isatty()

    def say(self, text: str) -> None:
        if self.shown and not say(self._name + text, self._file):
            self.shown = False

    def start(self, epoch: int, images: int, done: int) -> None:
        """Begin an epoch, `done` of its images already trained on."""
        self._epoch_begun, self._left = time.monotonic(), self.epochs - epoch - 1
        self._begun = self._begun or self._epoch_begun
        self._looked = self._epoch_begun
        if self.on_terminal:
            width = len(str(self.epochs))
            self._bar = tqdm(
                total=images,
                initial=done,
                desc=f"epoch {epoch + 1:{width}}/{self.epochs}",
                bar_format=BAR,
                dynamic_ncols=True,
                leave=False,
                file=Unfailing(sys.stderr),
            )

    def advance(self, images: int, totals: Totals) -> None:
        """Count the images of a step; the figures so far are shown every half second."""
        if self._bar is None:
            return
        self._bar.update(images)
        now = time.monotonic()
        if (
            now - self._looked < PAUSE or totals.loss.device.type == "xla"
        ):  # which would compile a graph for it
            return
        self._looked = now
        rate = (self._bar.n - self._bar.initial) / max(now - self._epoch_begun, 1e-9)
        epoch = (self._bar.total - self._bar.n) / max(rate, 1e-9)
        whole = self._whole or self._bar.total / max(rate, 1e-9)
        figures = totals.mean("train")
        self._bar.set_postfix_str(
            f"loss {brief(figures['train_loss'])} accuracy {figures['train_accuracy']:.3f} "
            f"{rate:,.0f}/s, {duration(epoch)} left, {duration(epoch + self._left * whole)} in all"
        )

    def testing(self) -> None:
        """Say that the epoch's training is over and its evaluation begins."""
        if self._bar is not None:
            self._bar.set_postfix_str("testing")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def finish(self, line: dict[str, Any]) -> None:
        """End the epoch; `line` is its metrics."""
        self.close()
        self._finished += 1
        self._whole = (time.monotonic() - self._begun) / self._finished
        width = len(str(self.epochs))
        held = [name for name in ("val", "test") if f"{name}_loss" in line]
        losses = [f"{name} {brief(line[f'{name}_loss'])}" for name in held]
        accuracies = [f"{name} {line[f'{name}_accuracy']:.4f}" for name in held]
        self.say(
            f"epoch {line['epoch'] + 1:{width}}/{self.epochs}"
            f"  loss {brief(line['train_loss'])}{_aside(losses)}"
            f"  accuracy {line['train_accuracy']:.3f}{_aside(accuracies)}  {line['images_per_second']:,.0f}/s"
        )


def _aside(parts: list[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""


def brief(loss: float) -> str:
    """Return a loss in few characters, however large."""
    return f"{loss:.4f}" if loss < 1e4 else f"{loss:.2e}"


def duration(seconds: float) -> str:
    """Return a duration as 0:05, 12:30 or 3:04:05."""
    whole = min(round(seconds), 359_999)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
