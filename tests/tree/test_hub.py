"""Networks of timm and transformers, of random weights: frozen, fused, fitted, saved and applied by
examples/hub.py, as docs/hub.md says."""

from __future__ import annotations

import importlib
import sys

import pytest
from test_examples import example, refused

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


def test_it_says_what_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    said = refused(monkeypatch, "hub.py", "--timm", "x", "--dataset", "digits")
    assert said.endswith("run: pip install timm") and "\n" not in said
