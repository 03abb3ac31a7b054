"""Networks of timm and transformers, of random weights: frozen, fused, fitted, saved and applied by
examples/hub.py, as docs/hub.md says."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
from runs import REPOSITORY
from test_examples import example

LITTLE = ["--dataset", "digits", "--epochs", "1", "--images", "128"]


def needs(package: str) -> None:
    """Skip where the package is missing or, as beside a build of torch that is not its own, broken."""
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{package} can't be imported: {error}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "hub, name, fused", [("timm", "resnet18", "20 of 20"), ("transformers", "microsoft/resnet-18", "5 of 6")]
)
def test_a_network_of_a_hub(hub, name, fused):
    needs(hub)
    done = example("hub.py", f"--{hub}", name, *LITTLE)
    assert done.returncode == 0, done.stderr
    assert f"{fused} convolutions run fused" in done.stdout
    assert "gives the same outputs, bit for bit: True" in done.stdout


def test_it_says_what_it_lacks():
    path = str(REPOSITORY / "examples" / "hub.py")
    code = (
        "import sys, runpy; sys.modules['timm'] = None; "
        "sys.argv = ['hub.py', '--timm', 'x', '--dataset', 'digits']; "
        f"runpy.run_path({path!r}, run_name='__main__')"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 1 and done.stderr.endswith("run: pip install timm\n")
    assert done.stderr.count("\n") == 1
