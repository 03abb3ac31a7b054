"""python -m fastbn.train --depth 14: trains a ResNet, BatchNorm only unless told otherwise, and keeps the
run in a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastbn.environment import place
from fastbn.errors import Diverged, MachineError, Stopped, UsageError
from fastbn.run.config import Config, parse
from fastbn.threads import wait_briefly


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done; 2 a wrong argument, missing data, or an engine or device that is lacking; 3 the
    training diverged; 130 and 143 stopped by a signal, after saving."""
    first = place().rank == 0  # of torchrun's ranks: what happens to all, it alone says

    def say(text: str, everybody: bool = True) -> None:
        if first or not everybody:
            print(f"fastbn: {text}", file=sys.stderr)

    try:
        config = parse(
            arguments, "python -m fastbn.train", "Trains a ResNet on images, its BatchNorm layers only."
        )
    except UsageError as error:
        say(f"error: {error}")
        return 2
    try:
        return run(config)
    except (UsageError, MachineError, Diverged, Stopped) as error:
        text, code = told(error)
        say(text, everybody=getattr(error, "agreed", True))
        return code
    except KeyboardInterrupt:  # before the first step, or a second one
        say("interrupted; what was saved before is intact")
        return 130


def told(error: UsageError | MachineError | Diverged | Stopped) -> tuple[str, int]:
    """What is said of a run that ended by this, and its exit code."""
    if isinstance(error, Stopped):
        return f"{error}; continue with --resume", error.exit_code
    return (f"diverged: {error}", 3) if isinstance(error, Diverged) else (f"error: {error}", 2)


def run(config: Config) -> int:
    """One run, from its settings to its folder."""
    wait_briefly()
    from fastbn.run.explain import explain_run
    from fastbn.run.run import train_run  # torch is imported only now: --help and wrong arguments are instant

    found = explain_run(config) if config.explain else train_run(config)
    if place().rank == 0:
        print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
