"""Finds and runs the system's C++ compiler, for a limited time and with limited output, whatever it turns
out to be."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

from fastbn.errors import MachineError

ANSWERS = 20  # seconds within which a compiler says its version
BUILDS = 600  # seconds; 20 are usual
KEPT = 1 << 16  # bytes of what it prints
SHOWN = 160  # characters of that


def compiler() -> list[str] | None:
    """Return the C++ compiler's command: what CXX says, else the first of c++, g++, clang++ on the path; None
    if there is none."""
    try:
        asked = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise MachineError(
            f"CXX={os.environ['CXX']!r} is no command ({error}); correct its quotes, or unset it"
        ) from None
    if asked:
        return asked if shutil.which(asked[0]) else None
    return next(([found] for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def identity(command: list[str]) -> str:
    """Return what tells one compiler from another and its versions apart, without running it."""
    state = os.stat(os.path.realpath(shutil.which(command[0]) or command[0]))
    return hashlib.sha256(
        f"{command} {state.st_size} {state.st_mtime_ns}".encode("utf-8", "replace")
    ).hexdigest()[:8]


def compile_library(command: list[str], arguments: list[str], library: Path) -> None:
    """Raises MachineError where the compiler fails, hangs, or makes nothing. Its temporary files lie
    beside the library."""
    _run([*command, "--version"], ANSWERS, library.parent)  # one that hangs does so here already
    code, said = _run([*command, *arguments, "-o", str(library)], BUILDS, library.parent)
    if code != 0 or not library.is_file():
        lines = said.strip().splitlines() or [f"it ended with {code} and without a message"]
        told = next((line for line in lines if "error" in line), lines[0])
        raise MachineError(
            f"{command[0]} could not build the kernels ({_shown(told)}); CXX names another compiler"
        )


def _run(command: list[str], seconds: float, folder: Path) -> tuple[int, str]:
    """Return the exit code, and the beginning of what was printed. The command and its children are ended
    after so many seconds."""
    until = time.monotonic() + seconds
    try:
        process = subprocess.Popen(
            command,
            env=os.environ | {"TMPDIR": str(folder), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, to be ended as one
        )
    except (OSError, ValueError) as error:
        raise MachineError(f"{command[0]} could not be run ({error}); CXX names another compiler") from None
    assert process.stdout is not None
    said, ended = b"", False
    try:
        while not ended and (left := until - time.monotonic()) > 0:
            if select.select([process.stdout], [], [], left)[0]:
                part = os.read(process.stdout.fileno(), KEPT)
                said, ended = (said + part)[:KEPT], not part
        code = process.wait(max(until - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        raise MachineError(
            f"{command[0]} had not ended after {seconds:.0f} s and was stopped; see why "
            f"`{' '.join(command[:2])}` hangs here, "
            "or set CXX to another compiler"
        ) from None
    finally:
        _end(process)
    return code, said.decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):  # compilers remove their temporary files at the first
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
    if process.stdout is not None:
        process.stdout.close()


def _shown(text: str) -> str:
    """Return a line as it can be shown: no control characters, not endless."""
    plain = "".join(c if c.isprintable() else "�" for c in text.strip())
    return plain if len(plain) <= SHOWN else f"{plain[:SHOWN]}…"
