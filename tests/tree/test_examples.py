"""The examples run as a reader would run them, on little."""

import os
import re
import subprocess
import sys

import pytest
from runs import REPOSITORY

LITTLE = ["--dataset", "digits", "--depth", "8", "--epochs", "1", "--images", "200"]


def example(name, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, str(REPOSITORY / "examples" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
def test_finetune():
    done = example("finetune.py", *LITTLE)
    assert done.returncode == 0, done.stderr
    rows = re.findall(
        r"^(\S+) +(batch|frozen) +(fused|stock) +(0\.\d+) +(\d+\.\d) +(\d+\.\d)$", done.stdout, re.M
    )
    assert [row[:3] for row in rows] == [
        ("output", "frozen", "fused"),
        ("bn+output", "batch", "fused"),
        ("bn+output", "frozen", "fused"),
        ("all", "batch", "stock"),
    ]
    # γ, β 560, fc 325; and the statistics, or 78,325 parameters: 4 bytes each
    kb = [float(row[5]) for row in rows]
    assert kb[0] < kb[2] < kb[1] < kb[3] and kb[0] == 1.3


@pytest.mark.slow
def test_adapt():
    done = example("adapt.py", *LITTLE)
    assert done.returncode == 0, done.stderr
    values = dict(re.findall(r"^(.*?\S) {2,}(0\.\d+|1\.000)", done.stdout, re.M))
    assert (
        values["corrupted, as trained, after reset"] == values["corrupted, as trained"] and len(values) == 6
    )


def test_sweep_says_what_it_lacks():
    """Without Optuna: one line, and how to get it."""
    path = str(REPOSITORY / "examples" / "sweep.py")
    code = (
        "import sys, runpy; sys.modules['optuna'] = None; sys.argv = ['sweep.py']; "
        f"runpy.run_path({path!r}, run_name='__main__')"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert (
        done.returncode == 1
        and done.stderr == "examples/sweep.py needs Optuna, which is not installed; run: pip install optuna\n"
    )


@pytest.mark.slow
def test_sweep():
    pytest.importorskip("optuna", reason="Optuna is not installed")
    done = example("sweep.py", *LITTLE, "--trials", "2")
    assert done.returncode == 0 and "best of 2 trials" in done.stdout, done.stderr
