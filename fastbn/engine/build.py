"""Builds the CPU kernels with the system's compiler at first use and loads them; a plain C interface, so no ABI of torch's to match."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from fastbn.errors import MachineError

SOURCES = Path(__file__).resolve().parent.parent / "kernels" / "cpu"
# never -ffast-math: loading a library built with it sets the whole process to flush-to-zero
FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *os.environ.get("FASTBN_CXXFLAGS", "").split(),  # a tester's: other vectors, sanitizers
]


def compiler() -> str | None:
    """The C++ compiler: what CXX names, else the first of c++, g++, clang++ on the path; None if there is none."""
    asked = os.environ.get("CXX")
    return next((found for name in ([asked] if asked else ["c++", "g++", "clang++"]) if (found := shutil.which(name))), None)


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels, built if this version of them was not yet built for this CPU. Raises MachineError where that fails."""
    found = compiler()
    if found is None:
        raise MachineError("engine 'native' needs a C++ compiler, none of CXX, c++, g++, clang++ found; install one, or use 'reference'")
    target = cache() / f"kernels-{_key(found)}.so"
    if not target.exists():
        _build(found, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        target.unlink(missing_ok=True)
        raise MachineError(f"engine 'native': {target} could not be loaded ({error}); it is removed, try again") from error


def cache() -> Path:
    """Where built kernels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastbn"


def _build(compiler: str, target: Path) -> None:
    sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            part = Path(folder) / "kernels.so"
            done = subprocess.run([compiler, *FLAGS, *sources, "-o", str(part)], capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[0]
                raise MachineError(f"engine 'native': {compiler} could not build the kernels ({reason}); set CXX, or use 'reference'")
            os.replace(part, target)
    except OSError as error:
        raise MachineError(f"engine 'native': cannot keep kernels in {target.parent} ({error.strerror}); set XDG_CACHE_HOME") from error


def _key(compiler: str) -> str:
    """What a build depends on: the sources, the flags, the compiler, the CPU."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    digest.update("\n".join([*FLAGS, version, _cpu()]).encode())
    return digest.hexdigest()[:16]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))
    except OSError:
        return platform.processor() + platform.machine()
