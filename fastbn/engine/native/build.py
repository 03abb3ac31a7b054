"""Builds the CPU kernels with the system's compiler at first use and loads them; a plain C interface, so
no ABI of torch's to match."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from fastbn.errors import MachineError

SOURCES = Path(__file__).resolve().parents[2] / "kernels" / "cpu"
# never -ffast-math: loading a library built with it sets the whole process to flush-to-zero
FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-pthread", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *os.environ.get("FASTBN_CXXFLAGS", "").split(),  # a tester's: other vectors, sanitizers
]


def compiler() -> list[str] | None:
    """The C++ compiler's command: what CXX says, else the first of c++, g++, clang++ on the path; None if
    there is none."""
    asked = shlex.split(os.environ.get("CXX", ""))
    if asked:
        return asked if shutil.which(asked[0]) else None
    return next(([found] for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def library() -> ctypes.CDLL:
    """The kernels, built if this version of them was not yet built for this CPU. Raises MachineError where
    that fails."""
    found = _library()
    if isinstance(found, str):
        raise MachineError(f"engine 'native': {found}; use 'reference' instead")
    return found


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The kernels, or why there are none: tried once in a process."""
    command = compiler()
    if command is None:
        asked = os.environ.get("CXX")
        return f"no C++ compiler was found ({f'CXX={asked}' if asked else 'c++, g++, clang++'})"
    try:
        target = cache() / f"kernels-{_key(command)}.so"
        if not target.exists():
            _build(command, target)
        return ctypes.CDLL(str(target))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        return (
            f"{command[0]} could not build the kernels "
            f"({next((line for line in lines if 'error' in line), lines[0])})"
        )
    except OSError as error:
        return (
            f"its kernels can't be built or loaded ({error}); CXX names another compiler, XDG_CACHE_HOME "
            "another place for them"
        )


def cache() -> Path:
    """Where built kernels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "fastbn"


def _build(command: list[str], target: Path) -> None:
    sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part = Path(folder) / "kernels.so"
        subprocess.run(
            [*command, *FLAGS, *sources, "-o", str(part)], capture_output=True, text=True, check=True
        )
        os.replace(part, target)


def _key(command: list[str]) -> str:
    """What a build depends on: the sources, the flags, the compiler, the CPU."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        digest.update(path.name.encode() + path.read_bytes())
    version = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
    digest.update("\n".join([*FLAGS, version, _cpu()]).encode())
    return digest.hexdigest()[:16]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "\n".join(
            sorted(
                {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
            )
        )
    except OSError:
        return platform.processor() + platform.machine()
