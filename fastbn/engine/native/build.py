"""Builds the CPU kernels with the system's compiler at first use and loads them; a plain C interface, so no
ABI of torch's to match.

A built library is kept for the next processes (kernel_cache.py). Its name says which sources, flags and CPU
features it was built of, and by which compiler: a machine that shares the folder and has another CPU builds
its own, and one that has no compiler takes what any compiler built for it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from fastbn.engine.native.compiler import BUILDS, compile_library, compiler, identity
from fastbn.engine.native.kernel_cache import cache, is_intact, locked, publish, reserve
from fastbn.errors import MachineError

SOURCES = Path(__file__).resolve().parents[2] / "kernels" / "cpu"
# never -ffast-math: loading a library built with it sets the whole process to flush-to-zero
FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-pthread", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *os.environ.get("FASTBN_CXXFLAGS", "").split(),  # a tester's: other vectors, sanitizers
]


def sources() -> list[str]:
    """Return what the compiler is given beside the flags: where headers are, and every source file."""
    return [f"-I{SOURCES}", *map(str, sorted(SOURCES.rglob("*.cpp")))]


def library() -> ctypes.CDLL:
    """Return the kernels, built if this version of them was not yet built for this CPU. Raises MachineError
    where that fails."""
    found = _library()
    if isinstance(found, str):
        raise MachineError(f"engine 'native': {found}; use 'reference' instead")
    return found


def failed() -> bool:
    """Return whether there is no library, so far as this process has asked."""
    return _library.cache_info().currsize > 0 and isinstance(_library(), str)


@functools.cache
def _library() -> ctypes.CDLL | str:
    """Return the kernels, or why there are none: tried once in a process."""
    folder = Path()
    try:
        command, folder, key = compiler(), cache(), _key()
        if command is None:
            return _built_before(folder, key)
        return _built(command, folder / f"kernels-{key}-{identity(command)}.so")
    except MachineError as error:
        return str(error)
    except OSError as error:
        return (
            f"the CPU kernels can't be kept in {folder} ({error.strerror or error}); "
            "make room or give rights there, or set XDG_CACHE_HOME to another folder"
        )


def _built_before(folder: Path, key: str) -> ctypes.CDLL:
    """Return what an earlier process built, by whichever compiler; for where there is none now."""
    for path in sorted(folder.glob(f"kernels-{key}-*.so")):
        if is_intact(path):
            with contextlib.suppress(OSError):  # built elsewhere, for another C library
                return ctypes.CDLL(str(path))
    asked = os.environ.get("CXX")
    raise MachineError(
        f"no C++ compiler was found ({f'CXX={asked}' if asked else 'c++, g++, clang++'}), "
        "and no kernels that were built before; install g++ or clang++"
    )


def _built(command: list[str], target: Path) -> ctypes.CDLL:
    if (found := _load(target)) is not None:
        return found
    waits = functools.partial(_say, "waiting for the CPU kernels, which another process builds")
    with locked(target.parent, 2 * BUILDS, waits):
        return _load(target) or _build(command, target)  # another process may have built it meanwhile


def _load(target: Path) -> ctypes.CDLL | None:
    """Return a kept library; None where it is missing, damaged, or fits this system no longer."""
    if is_intact(target):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(target))
    return None


def _build(command: list[str], target: Path) -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix="build-", dir=target.parent))
    try:
        reserve(folder)
        _say("building the CPU kernels (once, about 20 s)")
        part = folder / "kernels.so"
        try:
            compile_library(command, [*FLAGS, *sources()], part)
        except MachineError:
            reserve(folder)  # the compiler's own words for a full folder help nobody
            raise
        try:
            found = ctypes.CDLL(str(part))
        except OSError as error:
            raise MachineError(
                f"{command[0]} built kernels that can't be loaded ({error}); CXX names another compiler"
            ) from None
        publish(part, target)
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _key() -> str:
    """Return a digest of the sources, the flags and the CPU's features: all that a library must fit, known
    without a compiler. A CXX that was asked for has libraries of its own."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.rglob("*.h"), *SOURCES.rglob("*.cpp")]):
        digest.update(path.relative_to(SOURCES).as_posix().encode() + path.read_bytes())
    digest.update("\n".join([*FLAGS, os.environ.get("CXX", ""), _cpu()]).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    kinds = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), *sorted(kinds)])


def _say(text: str) -> None:
    """What can't be shown, on a closed or full stderr, ends nothing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"fastbn: {text}", file=sys.stderr, flush=True)
