"""A patch from a CPU on another device, and back: XLA's, by torch_xla's CPU device. Run by .ci/xla."""

import pytest
import torch
from torch import nn

import fastbn
from fastbn.machine import xla

pytestmark = pytest.mark.xla


def network() -> nn.Module:
    """Return the network, the same bits each time; BatchNorm and the output train."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return fastbn.freeze(nn.Sequential(*layers, nn.Linear(8, 5)), "bn+output")


def moved(model: nn.Module) -> nn.Module:
    """Return the network as training on a device might leave it."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, t in model.state_dict(keep_vars=True).items():
            if t.requires_grad or "running" in name:
                t.add_(torch.rand(t.shape, generator=draw).to(t.device) * 0.3)
    return model


@pytest.mark.parametrize("there, here", [("cpu", "xla"), ("xla", "cpu"), ("xla", "xla")])
def test_a_patch_goes_to_another_device(there, here, tmp_path):
    devices = {"cpu": torch.device("cpu"), "xla": xla.device()}
    saved = moved(network().to(devices[there]))
    fastbn.save(saved, tmp_path / "patch.safetensors", task="test")
    again = fastbn.apply_patch(network().to(devices[here]), tmp_path / "patch.safetensors")
    for (name, expected), found in zip(saved.state_dict().items(), again.state_dict().values(), strict=True):
        assert found.device.type == here and torch.equal(found.cpu(), expected.cpu()), name


def test_switching_on_another_device(tmp_path):
    fastbn.save(moved(network()), tmp_path / "patch.safetensors")
    model = network().to(xla.device())
    base = {name: t.cpu() for name, t in model.state_dict().items()}
    patches = fastbn.Patches(model)
    patches.add("moved", tmp_path / "patch.safetensors")
    patches.use("moved")
    for name, t in moved(network()).state_dict().items():
        assert torch.equal(model.state_dict()[name].cpu(), t), name
    patches.use(None)
    assert all(torch.equal(t.cpu(), base[name]) for name, t in model.state_dict().items())
