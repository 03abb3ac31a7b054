"""Kernels compiled for GPUs that are not here, in a process of its own: where Triton interprets, nothing
can be compiled."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # bench/ is not installed
CHILD = "import crosscompile; crosscompile.answer()"


@dataclass(frozen=True)
class Request:
    """One kernel for one capability, as compile_and_count of bench/audit/cost.py takes it; `kernel` is the
    function's name in `module`."""

    module: str
    kernel: str
    signature: dict[str, str]
    constexprs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    capability: int = 90


def told(child: str, asked: Any, timeout: float) -> Any:
    """Return what `child`, Python in a process where Triton compiles, answers on stdout to what it is asked
    on stdin, both pickled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-c", child],
        input=pickle.dumps(asked),
        capture_output=True,
        env=environment,
        cwd=ROOT,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return pickle.loads(done.stdout)


def costs(requests: Sequence[Request]) -> list[Any]:
    """Return the bench.audit.cost.Cost of each."""
    found: list[Any] = told(CHILD, list(requests), 600)
    return found


def answer() -> None:
    """The other process's part: requests on stdin, their costs on stdout."""
    from bench.audit.cost import compile_and_count

    found = []
    for asked in pickle.loads(sys.stdin.buffer.read()):
        kernel = getattr(importlib.import_module(asked.module), asked.kernel)
        found.append(
            compile_and_count(kernel, asked.signature, asked.constexprs, asked.options, asked.capability)
        )
    sys.stdout.buffer.write(pickle.dumps(found))
