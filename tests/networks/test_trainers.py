"""docs/trainers.md: each of its loops trains a fused network as it stands there, and as the plain loop does
unfused."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from nets import frozen_convolutions
from runs import REPOSITORY
from torch import nn

import fastbn
from fastbn.engine.fuse import fused_forward

PAGE = (REPOSITORY / "docs" / "trainers.md").read_text(encoding="utf-8")
HEAD, *BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
PLAIN, LIGHTNING, ACCELERATE = BLOCKS


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(F.relu(self.bn(self.conv(x))).mean((2, 3)))


def trained(block, network=None):
    """Return the network after a block of the page."""
    network = copy.deepcopy(network or START)
    x = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, torch.arange(12) % 4)
    names = {"network": network, "loader": torch.utils.data.DataLoader(data, batch_size=5)}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fastbn")
        exec(compile(HEAD + block, "docs/trainers.md", "exec"), names)
    return network


START = frozen_convolutions(Small()).requires_grad_(True)


def assert_trained_as_stock(network):
    expected = trained(PLAIN.replace("fastbn.fuse(", "("))
    assert fused_forward(expected) is None and not torch.equal(network.bn.weight, START.bn.weight)
    assert torch.equal(network.conv.weight, START.conv.weight) and network.conv.weight.grad is None
    for name, t in expected.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name].cpu(), t, rtol=1e-4, atol=1e-5)


def test_a_plain_loop():
    network = trained(PLAIN)
    assert fastbn.explain(network).graph.regions
    assert_trained_as_stock(network)


@pytest.mark.slow
def test_lightning(tmp_path, monkeypatch):
    pytest.importorskip("lightning", reason="Lightning is not installed: pip install lightning")
    monkeypatch.chdir(tmp_path)  # where it writes its logs
    network = trained(LIGHTNING)
    assert fused_forward(network) is not None
    assert_trained_as_stock(network)


@pytest.mark.slow
def test_accelerate():
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")
    network = trained(ACCELERATE)
    assert fused_forward(network) is not None
    assert_trained_as_stock(network)
