"""The Triton engine's check on a GPU: made once, in processes of its own, its results kept.

    python -m fastbn.engine.triton.self_check STORAGE I N      # one process's share: a JSON line per kind

A kernel that breaks its process's CUDA context, or never ends, takes a process with it and not the run. The
verdict is kept in the cache folder under the device, its driver, the versions of torch and triton, and the
kernels' source.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastbn.cli import command
from fastbn.engine.native.kernel_cache import cache
from fastbn.version import VERSION

SWITCH = "FASTBN_SELF_CHECK"  # in the environment; 0 leaves the check out
LIMIT = 240  # seconds that a process may take before it counts as hanging
STORAGES = {
    torch.float32: ("float32",),
    torch.float16: ("float16", "mixed"),
    torch.bfloat16: ("bfloat16",),
}
REPORT = "to report it: python -m fastbn.doctor"
Results = dict[str, str]  # a kind and a storage type -> what is wrong with it, or ""


@functools.cache
def verdict(device: torch.device, dtype: torch.dtype) -> str:
    """Return "" where the engine's kernels are right on this GPU in this storage type, else what failed.

    The first call on a device takes seconds, says so in one line on stderr, and keeps what it found.
    """
    if os.environ.get(SWITCH) == "0" or device.type != "cuda":
        return ""
    results: Results = {}
    for storage in STORAGES[dtype]:
        results |= checked(key(device), storage, device_index(device))
    return summary(results)


def summary(results: Results) -> str:
    """Return "" where nothing failed, else the first failure and how many there were."""
    failed = [what for what in results.values() if what]
    if not failed:
        return ""
    more = f" (and {len(failed) - 1} more of {len(results)} checks)" if len(failed) > 1 else ""
    return f"the Triton engine failed its self-check on this GPU: {failed[0]}{more}; {REPORT}"


def checked(
    key: dict[str, Any], storage: str, device: int = 0, run: Callable[[str, int], Results] | None = None
) -> Results:
    """Return the kept results of a key and storage type, made now where there are none. One process makes
    them at a time; the others wait for it."""
    from fastbn.engine.triton.kept import exclusively, keep, kept

    path = place(key, storage)
    with exclusively(path):
        results = kept(path, key)
        if results is None:
            start = time.monotonic()
            results = (run or run_apart)(storage, device)
            keep(path, key, results)
            failed = sum(map(bool, results.values()))
            said = f"{failed} of {len(results)} checks failed" if failed else f"{len(results)} checks passed"
            seconds = time.monotonic() - start
            command.say(
                f"fastbn: first use of {key['device']}: Triton kernels in {storage} against the reference "
                f"engine, {said} in {seconds:.0f} s"
            )
    return results


def run_apart(storage: str, device: int) -> Results:
    """Check every kind in processes of their own, as many as there are processors, up to the kinds."""
    from fastbn.engine.triton.probes import KINDS

    count = max(1, min(len(KINDS), (os.cpu_count() or 2) - 1))
    environment = {**os.environ, SWITCH: "0", "CUDA_VISIBLE_DEVICES": _visible(device)}
    words = [sys.executable, "-m", "fastbn.engine.triton.self_check", storage]
    started = [
        subprocess.Popen(
            [*words, str(i), str(count)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    deadline, results = time.monotonic() + LIMIT, Results()
    for i, process in enumerate(started):
        try:
            out, err = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
            how = f"its process ended with {process.returncode} ({_last(err)})"
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            how = f"no end after {LIMIT} s"
        told = dict(json.loads(line) for line in out.splitlines() if line.startswith("["))
        for kind in KINDS[i::count]:
            name = f"{kind} in {storage}"
            results[name] = told.get(name, f"{name}: {how}")
    return results


def examine(storage: str, share: int, count: int, device: torch.device) -> Results:
    """Check the kinds of one process's share; whatever a kernel raises is its result."""
    from fastbn.engine.triton.probes import KINDS, wrong

    results = Results()
    for kind in KINDS[share::count]:
        name = f"{kind} in {storage}"
        try:
            results[name] = wrong(kind, storage, device)
        except Exception as error:  # compiling, launching or the driver: all are failures of this kind
            reason = (str(error).splitlines() or [""])[0][:160]
            results[name] = f"{name}: {type(error).__name__}: {reason}"
        print(json.dumps([name, results[name]]), flush=True)
    return results


def key(device: torch.device) -> dict[str, Any]:
    """Return what a verdict holds for: another device, driver, version or kernel is checked anew."""
    import triton

    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "fastbn": VERSION,
        "kernels": sources(),
    }


@functools.cache
def sources() -> str:
    """Return the digest of the kernels and of the engine that launches them."""
    here = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for folder in (here.parents[1] / "kernels" / "triton", here, here.parent):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def place(key: dict[str, Any], storage: str) -> Path:
    """Return the file that a key's results are kept in."""
    said = hashlib.sha256(json.dumps([key, storage], sort_keys=True).encode()).hexdigest()[:16]
    return cache() / f"self-check-{said}.json"


def device_index(device: torch.device) -> int:
    """Return the ordinal of a CUDA device."""
    return torch.cuda.current_device() if device.index is None else device.index


def _visible(device: int) -> str:
    """Return CUDA_VISIBLE_DEVICES for a process that shall see this device alone."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[device] if device < len(visible) else str(device)


def driver() -> str:
    """Return the NVIDIA driver's version, or "unknown"."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            words = file.readline().split()
        return next((word for word in words if word[0].isdigit()), "unknown")
    except OSError:
        return "unknown"


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:160] if lines else "no message"


if __name__ == "__main__":
    examine(
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
