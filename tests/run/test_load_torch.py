"""How a command imports torch: how its threads wait is decided before, and an interruption waits until
after."""

from __future__ import annotations

import os

import pytest
from runs import python

from fastbn.machine.load_torch import SPINS, wait_briefly


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, {"GOMP_SPINCOUNT": str(SPINS)}),
        ({"GOMP_SPINCOUNT": "infinity"}, {"GOMP_SPINCOUNT": "infinity"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
    ids=["by default", "a count of the user's", "a policy of the user's"],
)
def test_the_users_environment_comes_first(monkeypatch, given, expected):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wait_briefly()
    assert {name: os.environ[name] for name in names if name in os.environ} == expected
    for name in names:
        monkeypatch.setenv(name, "")  # so that what wait_briefly set is undone too


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_it_is_decided_before_torch_is_loaded(command):
    done = python(f"""
import sys, fastbn.{command} as command
def here():
    print("torch" in sys.modules)
    sys.exit(7)
command.load_torch = here
command.main(["nothing"] if command.__name__ == "fastbn.evaluate" else ["--depth", "8"])
""")
    assert done.returncode == 7 and done.stdout.strip() == "False", done.stderr


def test_an_interruption_waits_for_the_import():
    done = python("""
import signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "torch._dynamo":
            signal.raise_signal(signal.SIGINT)
            print("came", flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
from fastbn import evaluate
from fastbn.cli import command
code = evaluate.main(["nothing"])
print("torch._dynamo" in sys.modules, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
command.leave(code)
""")
    assert (done.returncode, done.stderr) == (130, "fastbn: interrupted\n")
    assert done.stdout.split() == ["came", "True", "True"]
