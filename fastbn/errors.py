"""The errors that the command line turns into one line and an exit code; a library user catches ValueError or
RuntimeError. And how memory that ran out is known, whoever says it.

A message says what was asked, what was found, and what to do.
"""


def escaped(text: str) -> str:
    """Return a text on one line: what can't be printed, as its escape."""
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    )


class OneLine(Exception):
    """An error whose message is one line, whatever it repeats of a path or of a file that somebody else
    made."""

    def __init__(self, *arguments: object):
        super().__init__(
            *(escaped(argument) if isinstance(argument, str) else argument for argument in arguments)
        )


class UsageError(OneLine, ValueError):
    """The caller asked for something that cannot be: a wrong argument, missing data, a damaged file (exit
    code 2)."""

    agreed = False  # whether every rank raised it together: the first alone says it then


class UnknownSetting(UsageError, TypeError):
    """The caller gave a setting by a name that is none; a TypeError too, as Python's own is."""


class MachineError(OneLine, RuntimeError):
    """This machine lacks what was asked for: an engine, a device, disk space; or another rank was lost
    (exit code 2)."""

    agreed = False  # as of a UsageError


class Diverged(RuntimeError):
    """The loss or a gradient stopped being finite; the last checkpoint is intact (exit code 3)."""


class Stopped(BaseException):
    """A signal asked the run to stop; it was saved first (exit code 128 + the signal's number)."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.number = signal_number
        self.exit_code = 128 + signal_number


# as CUDA and Triton, its libraries, and the CPU's allocator say
NO_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocator had no more: CUDA's, a library's or this machine's; or whether that is what
    led to the error, as it leads to one at the end of a capture."""
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY):
        return True
    return error.__context__ is not None and is_out_of_memory(error.__context__)


DEVICE_FAILURES = ("cuda error", "cublas_status", "cudnn_status", "device-side assert", "triton error")


def is_device_failure(error: BaseException) -> bool:
    """Return whether a GPU or its driver gave up: the process can compute nothing more there."""
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in DEVICE_FAILURES)
