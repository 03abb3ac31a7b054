"""The examples run as a reader would run them, on little."""

import os
import re
import runpy
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
        values["corrupted, as trained, after reset"] == values["corrupted, as trained"] and len(values) == 7
    )


def refused(monkeypatch, name, *arguments):
    """Return with what an example ends, run in this process, that lacks something."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(REPOSITORY / "examples" / name), run_name="__main__")
    return end.value.code


def test_sweep_says_what_it_lacks(monkeypatch):
    """Without Optuna it prints one line, with how to get it."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    said = "examples/sweep.py needs Optuna, which is not installed; run: pip install optuna"
    assert refused(monkeypatch, "sweep.py") == said


@pytest.mark.slow
def test_federated():
    """On 100 images: γ, β and the statistics are ResNet-8's 560 and 560 numbers, of 4 bytes each."""
    done = example("federated.py", "--rounds", "1", "--epochs", "1", "--seeds", "2", "--images", "100")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\S.*?) {2,}(\d+\.\d) +(0\.\d+) ± (0\.\d+) +(0\.\d+)$", done.stdout, re.M)
    kb = {row[0]: float(row[1]) for row in rows}
    assert len(rows) == 6 and kb["BatchNorm, FedAvg"] == 5.4 and kb["γ and β"] == 2.7 and kb["nothing"] == 0
    assert kb["everything, FedAvg"] == pytest.approx(kb["all but BatchNorm, FedBN"] + 5.4, abs=0.1)


@pytest.mark.slow
def test_gan(tmp_path):
    picture = tmp_path / "gan.png"
    words = ["--epochs", "1", "--width", "4", "--images", "200", "--picture", str(picture)]
    done = example("gan.py", *words)
    assert done.returncode == 0 and "stock in this call" not in done.stderr, done.stderr
    rows = re.findall(r"^(\S.*?) {2,}(\d+\.\d\d)", done.stdout, re.M)
    distances = {name: float(value) for name, value in rows}
    assert len(rows) == 4 and distances["real, held out"] == min(distances.values())
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_sweep():
    pytest.importorskip("optuna", reason="Optuna is not installed")
    done = example("sweep.py", *LITTLE, "--trials", "2")
    assert done.returncode == 0 and "best of 2 trials" in done.stdout, done.stderr
