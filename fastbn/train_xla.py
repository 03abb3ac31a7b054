"""python -m fastbn.train_xla ARGUMENTS: python -m fastbn.train on every chip of this machine,
a process a chip.

PJRT_DEVICE=TPU python -m fastbn.train_xla --depth 866 --device xla
"""

from __future__ import annotations

import sys

from fastbn.cli import command
from fastbn.machine.environment import Place, placed


def _chip(ordinal: int, arguments: list[str]) -> None:
    """Run as one of the launched processes."""
    from torch_xla import runtime

    from fastbn.train import main

    with placed(Place(ordinal, runtime.world_size(), runtime.local_ordinal(), 0)):
        code = main(arguments)
    if code:
        sys.exit(code)


def launch(arguments: list[str]) -> int:
    """Run python -m fastbn.train with these arguments, in one process per chip."""
    from fastbn.machine.xla import torch_xla_package

    def start() -> int:
        torch_xla_package().launch(_chip, (arguments,))
        return 0

    return command.run(start)


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
