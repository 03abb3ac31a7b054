"""What the command line turns into one line and an exit code; a library user catches ValueError or RuntimeError.

A message says what was asked, what was found, and what to do.
"""


class UsageError(ValueError):
    """The caller asked for something that cannot be: a wrong argument, missing data, a damaged file (exit code 2)."""

    agreed = False  # whether every rank raised it together: the first alone says it then


class MachineError(RuntimeError):
    """This machine lacks what was asked for: an engine, a device, disk space; or another rank was lost (exit code 2)."""

    agreed = False  # as of a UsageError


class Diverged(RuntimeError):
    """The loss or a gradient stopped being finite; the last checkpoint is intact (exit code 3)."""


class Stopped(BaseException):
    """A signal asked the run to stop; it was saved first (exit code 128 + the signal's number)."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number
