"""Networks with parts that torch.jit made: those run as they are, the rest fused."""

import pytest
import torch
from torch import nn

from fastbn import freeze, fuse
from fastbn.planning.explain import explain

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class WithScripts(nn.Module):
    """Layers, then what torch.jit.trace and torch.jit.script made of others."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.traced = torch.jit.trace(inner, torch.randn(2, 8, 6, 6), check_trace=False)
        self.scripted = torch.jit.script(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8)))

    def forward(self, x):
        return self.scripted(self.traced(self.first(x)))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_scripted_modules_run_as_they_are(train):
    torch.manual_seed(0)
    stock = freeze(WithScripts()).double().train(train)
    fused = freeze(WithScripts()).double()
    fused.load_state_dict(stock.state_dict())
    fuse(fused.train(train), "reference")
    for _ in range(2):
        x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
        expected, found = stock(x), fused(x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        dz = torch.randn_like(expected)
        expected.backward(dz)
        found.backward(dz)
    for (name, one), (_, other) in zip(stock.named_buffers(), fused.named_buffers(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9, msg=name)
    for (name, one), (_, other) in zip(stock.named_parameters(), fused.named_parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-8, atol=1e-8, msg=name)
    assert explain(fused).convolutions[0] == 1
