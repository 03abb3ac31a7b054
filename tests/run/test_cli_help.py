"""The trainer's help: it imports no torch, and names every option with its default."""

import subprocess
import sys

import pytest
from runs import (
    REPOSITORY,
    python,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_help_imports_no_torch():
    """It needs nothing that only some machines have."""
    done = python(
        "import sys\n"
        "for name in ('triton', 'pynvml', 'matplotlib', 'torch_xla'): sys.modules[name] = None\n"
        "import fastbn\n"
        "assert 'torch' not in sys.modules, 'import fastbn'\n"
        "import fastbn.evaluate, fastbn.train\n"
        "for module in (fastbn.train, fastbn.evaluate):\n"
        "    try: module.main(['--help'])\n"
        "    except SystemExit as end: assert not end.code\n"
        "    else: raise AssertionError('no exit')\n"
        "    assert module.main(['--bogus']) == 2\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, '--help'\n"
        "from fastbn import FastBNOnlyResNet, fit\n"
        "import fastbn.run.run, fastbn.training.step\n"
        "assert 'torch' in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr
    assert all(f"usage: python -m fastbn.{name}" in done.stdout for name in ("train", "evaluate"))
    assert done.stderr.count("fastbn: error: ") == done.stderr.count("\n") == 2


def test_help_names_every_option_and_its_default():
    done = subprocess.run(
        [sys.executable, "-m", "fastbn.train", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    text = " ".join(done.stdout.split())
    assert done.returncode == 0 and done.stderr == ""
    options = (
        "depth width family dataset data-dir download train gamma-init beta-init weight-init weights "
        "bn-stats epochs batch-size bn-batch "
        "optimizer lr momentum weight-decay milestones engine device precision seed out resume limit-train "
        "limit-test val "
        "explain memory on"
    )
    for option in options.split():
        assert f" --{option}" in text
    for default in (
        "; 128, or",
        "(0.9)",
        "(0.0001)",
        "(uniform)",
        "(zeros)",
        "(kaiming_normal)",
        "160",
        "0.1 for sgd",
    ):
        assert default in text
