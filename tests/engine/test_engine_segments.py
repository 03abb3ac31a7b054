"""Segments: a backward that computes raw outputs a second time gives the same bits, from less that was
saved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import chain, resnet
from torch import nn

from bench.oracle.networks import images, norms
from bench.oracle.stock import assert_same, fused, run
from fastbn import explain
from fastbn.engine.context import recomputing
from fastbn.engine.recomputation import Recompute, cuts, spans

SMALLEST = Recompute(1)  # a segment a block, nothing kept
NETS = {
    "cifar 14": lambda: (resnet(14), images(2, 9, 7)),
    "imagenet 18": lambda: (resnet(18, 4, "imagenet"), images(2, 33, 31)),
    "imagenet 50": lambda: (resnet(50, 4, "imagenet"), images(2, 33, 31)),
    "a chain": lambda: (chain(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))), images(2)),
}


def same_bits(found, expected):
    assert_same(found, expected, 0.0)


def saved_bytes(model, *inputs):
    """Return the bytes of the region's own saved tensors."""
    kept: dict[int, int] = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(*inputs)
    return sum(kept.values())


@pytest.mark.parametrize(
    "policy", [SMALLEST, Recompute(30_000), Recompute(1, 40_000), Recompute(30_000, 10**9)], ids=str
)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "imagenet" in name else ()) for name in NETS]
)
def test_the_bits_stay(name, policy):
    model, x = NETS[name]()
    model = model.double()
    expected = run(fused(model), x.requires_grad_())
    with recomputing(policy):
        same_bits(run(fused(model), x), expected)


@pytest.mark.parametrize(
    ("engine", "depth", "width", "family", "size"),
    [
        ("native", 14, 16, None, 9),
        ("native", 18, 16, "imagenet", 33),
        ("triton", 8, 16, None, 4),
        pytest.param("triton", 8, 4, None, 4, marks=pytest.mark.slow),
    ],
)
def test_the_bits_stay_on_every_engine(engine, depth, width, family, size):
    model = resnet(depth, width, family).float()
    x = images(2, size, size, dtype=torch.float32, grad=True)
    model = fused(model, engine)
    buffers = [b.clone() for b in model.buffers()]
    expected = run(model, x)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    with recomputing(SMALLEST):
        same_bits(run(model, x), expected)


@pytest.mark.parametrize("frozen", ["every BatchNorm", "the first half of them", "no gradient before layer2"])
def test_modes(frozen):
    model, x = resnet(14).double(), images(2, 9, 7)
    if frozen == "no gradient before layer2":
        x = x.requires_grad_(False)
        for name, p in model.named_parameters():
            p.requires_grad_(p.requires_grad and name.startswith(("layer2", "layer3")))
    else:
        own = norms(model)
        for norm in own[: len(own) if frozen == "every BatchNorm" else len(own) // 2]:
            norm.eval()
    expected = run(fused(model), x)
    with recomputing(SMALLEST):
        same_bits(run(fused(model), x), expected)


def test_less_is_saved_and_the_running_statistics_move_once():
    model, x = resnet(32, 4).double(), images(4, 16, 16)
    ours = fused(model)
    whole = saved_bytes(ours, x)
    with recomputing(SMALLEST):
        blocks = saved_bytes(ours, x)
    with recomputing(Recompute(4 * 4 * 16 * 16 * 8 * 4)):  # two blocks of the first stage
        pairs = saved_bytes(ours, x)
    assert pairs < blocks < 0.75 * whole
    before = int(norms(ours)[0].num_batches_tracked)
    with recomputing(SMALLEST):
        run(ours, x)
    assert int(norms(ours)[0].num_batches_tracked) == before + 1


def test_a_backward_may_be_repeated():
    model, x = fused(resnet(8).double()), images(2)
    g = torch.ones(2, 10, dtype=torch.float64)
    with recomputing(SMALLEST):
        y = model(x)
    y.backward(g, retain_graph=True)
    first = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    y.backward(g)
    assert all(
        torch.equal(p.grad, 2 * once)
        for p, once in zip((p for p in model.parameters() if p.requires_grad), first, strict=True)
    )


class Dense(nn.Module):
    """Every activation is read twice, here and by the second join behind it: it can be cut nowhere inside."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(3, 3, 3, padding=1, bias=False).requires_grad_(False) for _ in range(4)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, x):
        older, x = x, F.relu(self.bns[0](self.convs[0](x)))
        for conv, bn in zip(self.convs[1:], self.bns[1:], strict=True):
            older, x = x, F.relu(bn(conv(x)) + older)
        return x


def test_where_a_region_is_cut():
    region = explain(resnet(14)).graph.regions[0]
    shapes = region.shapes(((1, 3, 8, 8),))
    # before and after the stem's join, and after each block's two
    assert cuts(region) == [0, 1, 3, 5, 7, 9, 11, 13]
    assert spans(region, shapes, 4, Recompute(10**9, 10**9)) == ()
    assert spans(region, shapes, 4, Recompute(10**9)) == (range(0, 13),)
    assert spans(region, shapes, 4, SMALLEST) == (range(0, 1), *(range(i, i + 2) for i in range(1, 13, 2)))
    held = [(4 * 64) * 4] * 5  # stem and the first stage
    assert spans(region, shapes, 4, Recompute(sum(held[:3])))[0] == range(0, 3)
    assert spans(region, shapes, 4, Recompute(1, 1))[-1].stop == 13
    last = 2 * 16 * 4 * 4  # the last block's two raw outputs: 16 channels of 2×2
    assert spans(region, shapes, 4, Recompute(1, last))[-1].stop == 11


def test_what_cannot_be_cut_keeps_its_bits_too():
    model, x = Dense().double(), images(2)
    graph = explain(model).graph
    assert cuts(graph.regions[0])[:-1] == [0]
    expected = run(fused(model), x)
    with recomputing(SMALLEST):
        same_bits(run(fused(model), x), expected)
