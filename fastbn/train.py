"""python -m fastbn.train --depth 14: trains a ResNet, BatchNorm only unless told otherwise, and keeps the
run in a folder."""

from __future__ import annotations

from collections.abc import Sequence

from fastbn.cli import command
from fastbn.errors import Diverged, Stopped, UsageError
from fastbn.machine.environment import place
from fastbn.machine.load_torch import load_torch
from fastbn.settings.arguments import parse
from fastbn.settings.config import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done; 2 a wrong argument, missing data, or an engine or device that is lacking; 3 the
    training diverged; 130 and 143 stopped by a signal, after saving."""
    return command.run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    first = place().rank == 0  # of torchrun's ranks: what happens to all, it alone says
    try:
        return run(_parsed(arguments))
    except (Exception, KeyboardInterrupt, Stopped) as error:
        known, of_all = command.ended(error), isinstance(error, (Diverged, KeyboardInterrupt, Stopped))
        if known is None or first or not getattr(error, "agreed", of_all):
            raise
        return known[1]


def _parsed(arguments: Sequence[str] | None) -> Config:
    try:
        return parse(arguments, "train", "Train a network on images, its BatchNorm layers only.")
    except UsageError as error:
        error.agreed = True
        raise


def run(config: Config) -> int:
    """Run one training run, from its settings to its folder, and show its result."""
    load_torch()  # only now: --help and wrong arguments are instant
    from fastbn.run.explain import explain_run
    from fastbn.run.run import train_run

    outcome = explain_run(config) if config.explain else train_run(config)
    if place().rank == 0:
        command.show(outcome)
    return 0


if __name__ == "__main__":
    command.leave(main())
