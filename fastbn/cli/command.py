"""How a command speaks and ends: results on stdout, progress and errors on stderr, one line for an error, an
exit code.

What can't be shown never ends a run: where stderr is closed, full or a broken pipe, the command goes on in
silence; where stdout's reader has left, what it would have read is dropped. Characters that a terminal lacks
are replaced. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO, cast

from fastbn.errors import Diverged, MachineError, Stopped, UsageError, is_device_failure, is_out_of_memory
from fastbn.files import reason, shown

LONGEST = 400  # characters of an error, which is then two lines of a wide screen


def run(act: Callable[[], int]) -> int:
    """Run a command and return its exit code. A known end (`ended`) is a line on stderr; a fault of fastbn's
    keeps its traceback."""
    hold_descriptors()
    with contextlib.redirect_stderr(cast(TextIO, Unfailing(sys.stderr))), _raised_again():
        try:
            return act()
        except (Exception, KeyboardInterrupt, Stopped) as error:
            known = ended(error)
            if known is None:
                raise
            with unhurried():
                say(f"fastbn: {known[0]}")
                return known[1]


def leave(code: int) -> NoReturn:
    """End the process with this exit code. A signal that comes now changes nothing any more."""
    _ignore()
    sys.exit(code)


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """Ignore signals while a last line is said."""
    before = _ignore()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _ignore() -> dict[int, Any]:
    """Ignore SIGINT and SIGTERM; return what heard them. In another thread nothing can be changed."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}


@contextlib.contextmanager
def _raised_again() -> Iterator[None]:
    """Inside, a signal is sent once more where Python dropped what its handler raised, as it does in a
    finalizer and in a weak reference's callback, of which every import has some."""
    before = sys.unraisablehook

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if isinstance(error, (KeyboardInterrupt, Stopped)):
            number = error.number if isinstance(error, Stopped) else signal.SIGINT
            again = threading.Timer(0.01, os.kill, [os.getpid(), number])
            again.daemon = True
            again.start()
        else:
            before(unraisable)

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = before


def ended(error: BaseException) -> tuple[str, int] | None:
    """Return what is said of a command that ended by this error, and its exit code: 2 where something was
    wrong or lacking, 3 diverged, 130 and 143 by a signal. None for a fault that is nobody's but fastbn's."""
    if isinstance(error, Stopped):
        return f"{error}; continue with --resume", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted{error}", 130
    if isinstance(error, Diverged):
        text, code = f"diverged: {error}", 3
    elif isinstance(error, (UsageError, MachineError)):
        text, code = f"error: {error}", 2
    elif isinstance(error, (MemoryError, RuntimeError)) and is_out_of_memory(error):
        said = f" ({shown(error, 80)})" if str(error) else ""
        text = f"error: this machine's memory does not hold this{said}; take less data, or a smaller network"
        code = 2
    elif is_device_failure(error):
        said = shown(error, 120)
        remedy = "what was saved is intact, --engine stock --resume goes on without fastbn's kernels"
        text, code = f"error: the GPU failed ({said}); {remedy}; to report it: python -m fastbn.doctor", 2
    elif _interrupted(error):
        text, code = "interrupted", 130
    else:
        return None
    return shown(text, LONGEST), code


def _interrupted(error: BaseException) -> bool:
    """Return whether an interruption led to the error, as Python makes a RuntimeError of one that comes while
    an import builds a class."""
    led = error.__cause__  # what it only came beside may be a fault of a clean-up
    return led is not None and (isinstance(led, KeyboardInterrupt) or _interrupted(led))


def say(text: str, file: TextIO | None = None) -> bool:
    """Write a line to stderr, or to a log; return whether it could be written."""
    stream = sys.stderr if file is None else file
    try:
        _line(text, stream)
    except (OSError, ValueError):
        _silence(stream)
        return False
    return stream is not None


def show(text: str) -> None:
    """Write a result to stdout. Raises MachineError where that can't be done, but for a reader that has left,
    as `head` does."""
    try:
        _line(text, sys.stdout)
    except BrokenPipeError:
        _silence(sys.stdout)
    except (OSError, ValueError) as error:
        _silence(sys.stdout)
        raise MachineError(
            f"the result could not be written to stdout: {reason(error)}; send it elsewhere"
        ) from None


class Unfailing:
    """A stream to which writing never fails: stderr for as long as a command runs, whoever writes to it."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(UnicodeEncodeError):  # a ValueError too, but no stream's end
            self._tried(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._tried(lambda stream: stream.flush())

    @property
    def closed(self) -> bool:
        return self._stream is None or self._stream.closed

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _tried(self, act: Callable[[TextIO], object]) -> None:
        try:
            if self._stream is not None:
                act(self._stream)
        except UnicodeEncodeError:
            raise
        except (OSError, ValueError):  # full, a broken pipe; closed
            _silence(self._stream)
            self._stream = None


def hold_descriptors() -> None:
    """Give a standard stream that was closed before the start the null device, lest a file of the run's take
    its number and with it whatever a library says there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one


def wrapped(text: str, columns: int) -> str:
    """Return a text whose lines fit so many columns, at spaces; what a line continues is indented to where
    the words after its first column of two spaces or more begin. A table's lines stay as they are."""
    lines: list[str] = []
    for line in text.split("\n"):
        if len(line) < columns or line.lstrip().startswith("|"):
            lines.append(line)
            continue
        label = re.match(r"\s*\S+ {2,}", line)
        indent = " " * (len(label[0]) if label and len(label[0]) < columns // 2 else 4)
        lines += textwrap.wrap(
            line, columns - 1, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    return "\n".join(lines)


def _line(text: str, stream: TextIO | None) -> None:
    if stream is None:
        return
    if stream.isatty():
        text = wrapped(text, max(40, shutil.get_terminal_size().columns))
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError:
        encoding = getattr(stream, "encoding", None) or "ascii"
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)


def _silence(stream: TextIO | None) -> None:
    """Let what a standard stream still holds go nowhere, or the interpreter would fail on it at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if stream in (sys.__stdout__, sys.__stderr__) and stream is not None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
