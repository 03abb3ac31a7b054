"""python -m fastbn.train --depth 14: trains a ResNet, BatchNorm only unless told otherwise, and keeps the run in a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastbn.config import Config, parse
from fastbn.errors import Diverged, MachineError, Stopped, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done; 2 a wrong argument, missing data, or an engine or device that is lacking; 3 the training diverged;
    130 and 143 stopped by a signal, after saving."""
    try:
        config = parse(arguments, "python -m fastbn.train", "Trains a ResNet on images, its BatchNorm layers only.")
        return run(config)
    except (UsageError, MachineError) as error:
        print(f"fastbn: error: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"fastbn: diverged: {error}", file=sys.stderr)
        return 3
    except Stopped as stopped:
        print(f"fastbn: {stopped}; continue with --resume", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:  # before the first step, or a second one
        print("fastbn: interrupted; what was saved before is intact", file=sys.stderr)
        return 130


def run(config: Config) -> int:
    """One run, from its settings to its folder."""
    from fastbn.training.run import explain_run, train_run  # torch is imported only now: --help and wrong arguments are instant

    if config.explain:
        print(explain_run(config))
    else:
        print(train_run(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
