"""The traffic of whole networks: FLOPs, saved bytes and launches, against what engines do."""

import collections
import itertools

import pytest
import torch
from torch import nn
from traffic_blocks import BLOCK, basic_blocks, moved

from bench.oracle.networks import images
from fastbn import FastBNOnlyResNet, freeze
from fastbn.engine.reference.engine import Reference
from fastbn.graph.regions import Unfit
from fastbn.planning.cost import Cost, TrafficPass, roofline, total
from fastbn.planning.explain import explain
from fastbn.planning.traffic import TrafficCase, TrafficPlan, fused, stock


def regions(depth, **options):
    return explain(FastBNOnlyResNet(depth, engine="reference", **options)).graph.regions


def test_resnet20_flops():
    (region,) = regions(20)
    plan = fused(TrafficCase(region, ((5, 3, 32, 32),)))
    stem = 32 * 32 * 16 * 3 * 9
    # of every 3×3 that keeps its shape: half the channels, four times the pixels
    same = 32 * 32 * 16 * 16 * 9
    # a projection: 16·16 pixels, 16 to 32
    multiplied = stem + 6 * same + 2 * (same // 2 + 5 * same + 16 * 16 * 32 * 16)
    assert multiplied == 40_812_544
    assert total(plan.forward).flops == 2 * 5 * multiplied
    assert total(plan.backward).flops == 2 * 5 * (multiplied - stem)  # the image asks for no gradient
    assert total(plan.forward).launches == 21 + 1  # the last z
    assert total(plan.backward).launches == 19  # a value each: 9 blocks of two, and the stem's
    theirs = stock(TrafficCase(region, ((5, 3, 32, 32),)), trains_weights=True)
    assert total(theirs.backward).flops == 2 * 5 * (2 * multiplied - stem)


def test_a_blocks_worth_by_difference():
    """Depth 26 has a block more in each stage than depth 20; a stage's activation is half of the one
    before."""
    A = 3 * 16 * 32 * 32 * 2
    more, fewer = (TrafficCase(regions(depth)[0], ((3, 3, 32, 32),), 2, 2) for depth in (26, 20))
    mask = A / 16 * 1.75
    for plan, forward, backward, saved, bits in (
        (fused, 6, 9, 2, mask),
        (stock, 17, 23, 4, 0),
        (lambda case: stock(case, True), 17, 27, 4, 0),
    ):
        one, other = plan(more), plan(fewer)
        assert sum(moved(one.forward)) - sum(moved(other.forward)) == forward * 1.75 * A + bits
        assert sum(moved(one.backward)) - sum(moved(other.backward)) == backward * 1.75 * A + bits
        assert one.saved - other.saved == saved * 1.75 * A + bits


def really_saved(model, x):
    """Return, by dtype, the bytes that a forward keeps of activations: 4-D, no parameter, each storage
    once."""
    kept, own = {}, {p.data_ptr() for p in model.parameters()}

    def pack(t):
        if t.dim() == 4 and t.data_ptr() not in own:
            kept[t.data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    found = collections.Counter()
    for t in kept.values():
        found[t.dtype] += t.numel() * t.element_size()
    return found


@pytest.mark.parametrize("depth, size", [(20, 32), (14, 9)])
def test_saved_bytes_are_what_the_reference_engine_saves(depth, size, one_thread):
    """It keeps a byte an element for a mask where the model has a bit."""
    (region,) = regions(depth, width=4)
    found = really_saved(
        FastBNOnlyResNet(depth, width=4, engine="reference"), images(2, size, size, dtype=torch.float32)
    )
    half, quarter = (size + 1) // 2, (size + 3) // 4  # an odd size rounds up
    stages = [2 * 4 * size**2, 2 * 8 * half**2, 2 * 16 * quarter**2]
    blocks = (depth - 2) // 6
    # the stem or a projection, and two a block
    ys, masks = (2 * blocks + 1) * sum(stages), blocks * sum(stages)
    assert found == {torch.float32: 4 * ys, torch.bool: masks}
    assert fused(TrafficCase(region, ((2, 3, size, size),))).saved == 4 * ys + masks / 8


@pytest.mark.parametrize("train", ["bn", "all"])
def test_saved_bytes_are_what_stock_saves(train, one_thread):
    """The width is 8, below which a projection that trains is computed on a contiguous copy."""
    model = freeze(FastBNOnlyResNet(14, width=8, engine="stock"), train).to(memory_format=torch.channels_last)
    x = images(2, 16, 16, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    (region,) = regions(14, width=8)
    assert really_saved(model, x) == {
        torch.float32: stock(TrafficCase(region, ((2, 3, 16, 16),)), train == "all").saved
    }


@pytest.mark.parametrize("case", ["cifar", "imagenet", "frozen"])
def test_launches_are_what_the_walk_asks_an_engine_for(case, monkeypatch, one_thread):
    calls, inside = collections.Counter(), []

    def counted(name):
        real = getattr(Reference, name)

        def call(self, *args):
            calls[name] += not inside  # its convolve calls its form
            inside.append(name)
            try:
                return real(self, *args)
            finally:
                inside.pop()

        monkeypatch.setattr(Reference, name, call)

    for name in ("convolve", "form", "gradient"):
        counted(name)
    depth, family = (50, "imagenet") if case == "imagenet" else (14, "cifar")
    model = FastBNOnlyResNet(depth, width=4, family=family, engine="reference")
    if case == "frozen":
        for norm in list(itertools.islice((m for m in model.modules() if isinstance(m, nn.BatchNorm2d)), 6)):
            norm.requires_grad_(False)
    given = [
        p.requires_grad for name, p in model.named_parameters() if name.endswith("weight") and p.dim() == 1
    ]
    model(images(2, 32, 32, dtype=torch.float32)).sum().backward()
    found, shape = TrafficPlan(), (2, 3, 32, 32)
    names = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for i, region in enumerate(regions(depth, width=4, family=family)):
        trains = tuple(given[names.index(conv.norm)] for conv in region.convs)
        found += fused(TrafficCase(region, (shape,), trains=trains, wanted=i > 0))
        shape = (2, 4, 8, 8)  # behind ImageNet's stem and max-pooling
    assert total(found.forward).launches == calls["convolve"] + calls["form"]
    assert total(found.backward).launches == calls["gradient"]
    assert sum(each.cost.flops > 0 for each in found.forward) == calls["convolve"] == len(names)


def test_costs_and_plans_add_up():
    assert Cost(1, 2, 3, 4, 5) + Cost(10, 20, 30, 40, 50) == Cost(11, 22, 33, 44, 55)
    one, other = TrafficPass("a", Cost(1)), TrafficPass("b", Cost(flops=2))
    assert TrafficPlan((one,), (), 3) + TrafficPlan((other,), (one,), 4) == TrafficPlan(
        (one, other), (one,), 7
    )
    assert total([one, other]) == Cost(1, 0, 0, 2) and total([]) == Cost()


def test_roofline():
    assert roofline(Cost(read=300, written=200, weights=100, flops=1000), 100.0, 1000.0) == 6.0
    assert roofline(Cost(read=300, written=200, weights=100, flops=9000), 100.0, 1000.0) == 9.0


@pytest.mark.parametrize("wrong", [{"trains": (True,) * 3}, {"batch": (True,) * 5}, {"wanted": (True, True)}])
def test_a_tuple_of_another_length_is_refused(wrong):
    case = TrafficCase(basic_blocks(2), BLOCK, **wrong)
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"{name} of length \d for a region that has \d: give one each"):
        fused(case)


def test_shapes_that_do_not_fit_are_refused():
    for plan in (fused, stock):
        with pytest.raises(Unfit, match=r"0\.a cannot read"):
            plan(TrafficCase(basic_blocks(1), ((2, 3, 8, 8),)))
