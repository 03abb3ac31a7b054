"""What the Triton engine launches, cross-compiled: that it fits every GPU it is for. Machine code is counted, nothing is run."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
from crosscompile import ROOT

pytest.importorskip("triton")

CHILD = "import test_triton_compile; test_triton_compile.answer()"
COMMON = (  # nearly every launch of a deep CIFAR network is one of these, at three sizes
    ("conv_rolling_forward 16, 32²", "scale-shift ReLU"),
    ("conv_rolling_forward 16, 32²", "+ residual ReLU → z mask"),
    ("gradient_rolling 16, 32²", "mask from y"),
    ("gradient_rolling 16, 32²", "+ 1, mask from bits"),
)

# bytes a thread at most, at 64 channels
SPILLED = {("cifar", "bf16"): 0, ("imagenet", "bf16"): 16, ("cifar", "fp16"): 56, ("cifar", "fp32"): 56}


def compiled(family, dtype, capability, only=""):
    """Each distinct launch's title, form, whether it multiplies, the limit of shared memory and the bench.audit.Cost; of a process
    of its own, since where Triton interprets nothing can be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    asked = pickle.dumps((family, dtype, capability, only))
    done = subprocess.run([sys.executable, "-c", CHILD], input=asked, capture_output=True, env=environment, cwd=ROOT, timeout=1800)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return pickle.loads(done.stdout)


def answer():
    """The other process's part. `only`: a part of the kernels' names, or titles and forms."""
    from bench.audit import SHARED, compiled_rows

    family, dtype, capability, only = pickle.loads(sys.stdin.buffer.read())
    names = isinstance(only, str)
    rows = compiled_rows(family, dtype, capability, lambda row: only in row.title if names else (row.title, row.form) in only)
    found = [(row.title, row.form, row.multiplies, SHARED[capability] * 1024, row.cost) for row in rows]
    sys.stdout.buffer.write(pickle.dumps(found))


def check(found, *kind):
    for title, form, multiplies, limit, cost in found:
        assert cost.spills <= SPILLED[kind], (title, form)
        assert cost.shared <= limit, (title, form)
        assert cost.matrix > 0 or not multiplies, (title, form)


def test_the_common_launches():
    found = compiled("cifar", "bf16", 90, COMMON)
    check(found, "cifar", "bf16")
    assert {(title, form) for title, form, *_ in found} == set(COMMON)
    for _, form, *_, cost in found:
        assert cost.count("HGMMA") > 0 and cost.wide_loads > 0
        assert ("max.NaN" in cost.ptx) == ("ReLU" in form)  # else a NaN would come out of it as 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype, capability", [*(("fp16", c) for c in (80, 86, 89, 90, 100, 120)), ("fp32", 86), ("fp32", 90)])
def test_every_capability(dtype, capability):
    """Every rolling launch of a CIFAR network of any depth. 89 and 120 hold what 86 does: fp32 is asked of the least and the most."""
    found = compiled("cifar", dtype, capability, "rolling")
    check(found, "cifar", dtype)
    assert all(cost.wide_loads > 0 for *_, cost in found)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["cifar", "imagenet"])
def test_every_kernel(family):
    check(compiled(family, "bf16", 90), family, "bf16")
