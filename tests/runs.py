"""Tiny runs of python -m fastbn.train, in this process or as processes of their own, and what they leave
behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from fastbn.data.digits import load_digits
from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.train import main
from fastbn.training import checked_file

TINY = [
    "--depth",
    "8",
    "--width",
    "4",
    "--dataset",
    "digits",
    "--limit-train",
    "64",
    "--limit-test",
    "32",
    "--batch-size",
    "24",
]
STEPS = 3  # an epoch: 24, 24 and a ragged 16
REPOSITORY = Path(__file__).parents[1]
# what no two runs share
TIMES = {
    "images_per_second",
    "seconds",
    "evaluation_seconds",
    "peak_memory_bytes",
    "planned_memory_bytes",
    "energy_joules",
}


def digits(train=64, test=32):
    whole = load_digits()
    return whole[0].limit(train), whole[1].limit(test)


def network(**arguments):
    return FastBNOnlyResNet(8, **{"width": 4, **arguments})


def train(out, *arguments, epochs=2):
    """Return the exit code of a tiny run in this process."""
    return main([*TINY, "--epochs", str(epochs), "--out", str(out), *arguments])


def _environment():
    """Return the environment of one thread, without what the kernels' own tests set."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
        "OMP_NUM_THREADS": "1"
    }


def start(*arguments, module="fastbn.train"):
    """Return a process that runs a module of fastbn's, one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def python(code, *arguments):
    """Return a finished process that ran this code, one thread."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=_environment(), capture_output=True, text=True, timeout=120
    )


def refused(code, capfd, *patterns):
    """Exit code 2 and one line that names all of these; nothing on stdout."""
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("fastbn: error: ") and err.count("\n") == 1, err
    for pattern in patterns:
        assert pattern in err
    return err


class Dying:
    """What a signal meets in a finalizer, where Python drops the exception that it raises."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def at_call(monkeypatch, owner, name, number, act):
    """Calls act() in the `number`th call (from 0) of owner.name, before what it does."""
    original, calls = getattr(owner, name), [0]

    def counting(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number + 1:
            act()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def checkpoint(out):
    return checked_file.read(out / "checkpoint.safetensors")


def contents(out):
    """Return every file of a folder but its lock, by name."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "lock"}


def assert_same_run(out, other):
    """Bit for bit: parameters, running statistics, optimizer state, position, and the metrics but for the
    times."""
    (tensors, header), (expected, wanted) = checkpoint(out), checkpoint(other)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name
    assert {**header, "config": None} == {**wanted, "config": None}
    known = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in metrics(folder)]
        for folder in (out, other)
    ]
    assert known[0] == known[1]
    assert not list(out.glob("*.part"))
