"""What a whole step is predicted to occupy, against a real step's bytes, counted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from counted import Counted
from nets import resnet
from torch import nn

from bench.oracle.networks import images
from fastbn import freeze
from fastbn.engine import fuse, fused_forward
from fastbn.engine.context import recomputing
from fastbn.engine.recomputation import Recompute
from fastbn.engine.select import choose
from fastbn.planning.step_memory import NetworkMemory

pytestmark = pytest.mark.usefixtures("one_thread")
CASES = {
    "cifar 14": (14, 16, None, (24, 3, 32, 32)),
    "imagenet 18": (18, 16, "imagenet", (6, 3, 160, 160)),
    "imagenet 50": (50, 8, "imagenet", (6, 3, 155, 163)),
}
FP32 = (torch.float32, torch.float32)


def step(model, x):
    labels = torch.zeros(len(x), dtype=torch.int64)
    F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), labels).backward()
    model.zero_grad()


@pytest.mark.parametrize("policy", [None, Recompute(500_000)], ids=["whole", "segments"])
@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_within_five_percent(name, engine, policy):
    depth, width, family, shape = CASES[name]
    model = fuse(resnet(depth, width, family).float(), engine)
    x = images(*shape[:1], *shape[2:], dtype=torch.float32)
    with recomputing(policy):
        step(model, x)  # packs the weights, and writes the program down
    with Counted() as counted, recomputing(policy):
        step(model, x)
    expected = NetworkMemory(model, choose(engine, torch.device("cpu"), torch.float32)[0]).occupied(
        shape, FP32, policy
    )
    assert expected.peak == pytest.approx(counted.peak, rel=0.05)
    assert (expected.flops_again > 0) == (policy is not None)


class DenseBlock(nn.Module):
    """BatchNorm -> ReLU -> convolution on all that came before, and a head."""

    def __init__(self):
        super().__init__()
        sizes = [(8 + 16 * i, 16) for i in range(3)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(inside) for inside, _ in sizes)
        self.convs = nn.ModuleList(nn.Conv2d(*size, 3, padding=1, bias=False) for size in sizes)
        self.stem, self.fc = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Linear(56, 10)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_a_batchnorm_that_reads_no_convolution_copies_nothing(engine):
    """What it normalises is its input itself, which stays: a copy would be a fifth of the peak. Within a
    tenth, for the scratch memory of a program is there for as long as it is played."""
    model, x = fuse(freeze(DenseBlock(), "bn"), engine), images(4, 48, 48, dtype=torch.float32)
    step(model, x)
    with Counted() as counted:
        step(model, x)
    memory = NetworkMemory(model, choose(engine, torch.device("cpu"), torch.float32)[0])
    assert memory.occupied(tuple(x.shape), FP32).peak == pytest.approx(counted.peak, rel=0.1)


def test_asking_leaves_no_trace():
    model = fuse(resnet(8, 16).float().train(), "native")
    model.fc.requires_grad_(True)
    x = images(3, 9, 9, dtype=torch.float32)
    F.cross_entropy(model(x), torch.zeros(3, dtype=torch.int64)).backward()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    NetworkMemory(model, choose("native", torch.device("cpu"), torch.float32)[0]).occupied(
        (64, 3, 32, 32), FP32, Recompute(1)
    )
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    for p, before in zip(model.parameters(), gradients, strict=True):
        assert (
            (p.grad is None)
            if before is None
            else (type(p.grad) is torch.Tensor and torch.equal(p.grad, before))
        )


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_packed_weights(engine):
    model = fuse(resnet(14, 16).float(), engine)
    model(images(1, 8, 8, dtype=torch.float32))
    found = [packed for _, _, packed in fused_forward(model)._packs[engine].values()]
    # some are used as they are: those take nothing
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copies = [t for p in found for t in ((p,) if isinstance(p, torch.Tensor) else (p.forward, p.backward))]
    size = sum(t.nbytes for t in copies if t.untyped_storage().data_ptr() not in weights)
    assert (
        NetworkMemory(model, choose(engine, torch.device("cpu"), torch.float32)[0]).packed_bytes(
            (1, 3, 8, 8), FP32
        )
        == size
    )


@pytest.mark.slow
def test_a_batch_costs_nothing_to_ask_about():
    """8,192 images of ResNet-866 by the graph: saved in proportion to the batch."""
    network = NetworkMemory(resnet(866, 16).float(), choose("native", torch.device("cpu"), torch.float32)[0])
    small, large = (network.occupied((n, 3, 32, 32), FP32) for n in (128, 8192))
    assert large.saved == 64 * small.saved
    segmented = network.occupied((8192, 3, 32, 32), FP32, Recompute(large.saved // 26))
    assert segmented.peak < 0.09 * large.peak
