"""The traffic model against counts by hand, and against what the reference engine and stock PyTorch really
save and launch.

A is one activation of the block in hand, in elements, and elements are of one byte unless said: a mask is A/8
bytes."""

import collections
import dataclasses
import itertools

import pytest
import torch
from torch import nn

from bench.oracle.networks import images
from fastbn import FastBNOnlyResNet, freeze
from fastbn.engine.reference.engine import Reference
from fastbn.graph.activations import IDENTITY, RELU
from fastbn.graph.regions import Conv, Join, Region, Unfit
from fastbn.planning.cost import Cost, TrafficPass, roofline, total
from fastbn.planning.explain import explain
from fastbn.planning.traffic import TrafficCase, TrafficPlan, fused, stock


def conv(name, source, inside, outside, kernel=3, stride=1):
    return Conv(
        name,
        f"{name}_bn",
        source,
        inside,
        outside,
        (kernel,) * 2,
        (stride,) * 2,
        (kernel // 2,) * 2,
        (1, 1),
        1,
        0,
    )


def basic_blocks(count):
    """Value 0 comes in; block k reads value 2k: 2k+1 = relu(a(2k)); 2k+2 = relu(b(2k+1) + 2k). The last is
    handed out."""
    joins = []
    for k in range(count):
        joins.append(Join(2 * k + 1, (conv(f"{k}.a", 2 * k, 4, 4),), None, RELU))
        joins.append(Join(2 * k + 2, (conv(f"{k}.b", 2 * k + 1, 4, 4),), 2 * k, RELU))
    return Region(1, tuple(joins), (2 * count,))


BLOCK = ((2, 4, 8, 8),)
A = 2 * 4 * 8 * 8


def moved(passes, name=""):
    """Return (read, written) of the passes whose name begins so."""
    found = total(each for each in passes if each.name.startswith(name))
    return found.read, found.written


def table(passes):
    """Read and written by name. Names are unique among a forward's passes, and among a backward's."""
    assert len({each.name for each in passes}) == len(passes)
    return {each.name: (each.cost.read, each.cost.written) for each in passes}


def test_an_identity_block_fused():
    plan = fused(TrafficCase(basic_blocks(3), BLOCK, 1, 1))
    # y2 of the block before, the residual; z, its mask, y1
    assert table(plan.forward)["1.a"] == (2 * A, 2 * A + A / 8)
    assert table(plan.forward)["1.b"] == (A, A)
    assert sum(moved(plan.forward, "1.")) == 6 * A + A / 8
    assert table(plan.backward)["1.b"] == (3 * A, A)  # ds, y2, y1; ds1
    # ds1, y1, ds of the residual, y2 of the block before; its mask
    assert table(plan.backward)["1.a"] == (4 * A + A / 8, A)
    assert sum(moved(plan.backward, "1.")) == 9 * A + A / 8
    assert plan.saved - fused(TrafficCase(basic_blocks(2), BLOCK, 1, 1)).saved == 2 * A + A / 8


@pytest.mark.parametrize("trains_weights, backward", [(True, 27), (False, 23)])
def test_an_identity_block_stock(trains_weights, backward):
    plan, shorter = (stock(TrafficCase(basic_blocks(count), BLOCK, 1, 1), trains_weights) for count in (3, 2))
    assert sum(moved(plan.forward, "1.")) == 17 * A
    assert sum(moved(plan.backward, "1.")) == backward * A
    assert plan.saved - shorter.saved == 4 * A  # y1, z1, y2, z


def test_an_identity_blocks_passes_stock():
    """23 A and 27 A, one by one."""
    plan = stock(TrafficCase(basic_blocks(3), BLOCK, 1, 1), trains_weights=True)
    block = {
        name: (read / A, written / A)
        for name, (read, written) in table(plan.forward).items()
        if name.startswith("1.")
    }
    assert block == {
        "1.a": (1, 1), "1.a_bn": (2, 1), "1.a_bn relu": (1, 1),
        "1.b": (1, 1), "1.b_bn": (2, 1), "1.b_bn add": (2, 1), "1.b_bn relu": (1, 1),
    }  # fmt: skip
    block = {
        name: (read / A, written / A)
        for name, (read, written) in table(plan.backward).items()
        if name.startswith("1.")
    }
    assert block == {
        "1.b_bn accumulate": (2, 1), "1.b_bn relu": (2, 1), "1.b_bn": (4, 1), "1.b": (1, 1),
        "1.b weight": (2, 0),
        "1.a_bn relu": (2, 1), "1.a_bn": (4, 1), "1.a": (1, 1), "1.a weight": (2, 0),
    }  # fmt: skip


def test_mixed_element_sizes():
    """Activations of 2 bytes, gradients of 4; a mask is a bit whatever they are."""
    case = TrafficCase(basic_blocks(3), BLOCK, activation=2, gradient=4)
    plan = fused(case)
    assert moved(plan.forward, "1.") == (2 * 3 * A, 2 * 3 * A + A / 8)
    assert table(plan.backward)["1.b"] == ((4 + 2 + 2) * A, 4 * A)
    assert table(plan.backward)["1.a"] == ((4 + 2 + 4 + 2) * A + A / 8, 4 * A)
    assert plan.saved == 6 * 2 * A + 3 * A / 8
    plan = stock(case)
    # accumulate dz dz; twice: ReLU dz z, BatchNorm ds y ds y, convolution dy; each of the seven writes a
    # gradient
    assert moved(plan.backward, "1.") == ((4 + 4 + 2 * (4 + 2 + 4 + 2 + 4 + 2 + 4)) * A, 7 * 4 * A)
    assert moved(plan.forward, "1.") == (2 * 10 * A, 2 * 7 * A)


def test_weights_are_counted_apart():
    case = TrafficCase(basic_blocks(1), BLOCK, activation=2, gradient=4, wanted=True)
    weight = 4 * 4 * 9
    assert total(fused(case).forward).weights == total(fused(case).backward).weights == 2 * (2 * weight)
    assert total(stock(case, True).forward).weights == 2 * (2 * weight)
    # read for dx; dw written
    assert total(stock(case, True).backward).weights == 2 * (2 * weight + 4 * weight)
    assert Cost(read=1, written=2, weights=4).moved == 7


def projection():
    """1 = relu(stem(0)), A; then halved and doubled: 2 = relu(a(1)), 3 = relu(b(2) + p(1)), B = A/2 each,
    handed out."""
    joins = (
        Join(1, (conv("stem", 0, 3, 4),), None, RELU),
        Join(2, (conv("a", 1, 4, 8, stride=2),), None, RELU),
        Join(3, (conv("b", 2, 8, 8), conv("p", 1, 4, 8, 1, 2)), None, RELU),
    )
    return TrafficCase(Region(1, joins, (3,)), ((2, 3, 8, 8),), 1, 1)


B = 2 * 8 * 4 * 4
IMAGE = 2 * 3 * 8 * 8


def test_a_projection_block_fused():
    plan = fused(projection())
    assert table(plan.forward) == {
        "stem": (IMAGE, A),
        "a": (A, A + B),  # y of the stem; z, since p reads it, and y
        "b": (B, B),
        "p": (A, B),  # that z
        "b_bn form": (2 * B, B + B / 8),  # both ys; z and the only mask
    }
    assert table(plan.backward) == {
        "b_bn mask": (B + 2 * B + B / 8, B),  # dz, both ys for their sums, the mask; ds
        "b": (B + B + B, B),  # ds, y of b; y of a
        "p + a": (4 * B + A, A),  # ds and y of each; y of the stem, for its sums and its mask
    }
    assert plan.saved == A + 3 * B + B / 8
    rows = 2 * 4 * 4
    flops = {"a": 2 * rows * 8 * 4 * 9, "b": 2 * rows * 8 * 8 * 9, "p": 2 * rows * 8 * 4}
    assert {each.name: each.cost.flops for each in plan.forward} == flops | {
        "stem": 2 * 4 * rows * 4 * 3 * 9,
        "b_bn form": 0,
    }
    assert [each.cost.flops for each in plan.backward] == [0, flops["b"], flops["p"] + flops["a"]]
    assert [each.cost.weights for each in plan.backward] == [0, 8 * 8 * 9, 8 * 4 + 8 * 4 * 9]


def test_a_projection_block_stock():
    plan = stock(projection())
    assert table(plan.forward) == {
        "stem": (IMAGE, A), "stem_bn": (2 * A, A), "stem_bn relu": (A, A),
        "a": (A, B), "a_bn": (2 * B, B), "a_bn relu": (B, B),
        "b": (B, B), "b_bn": (2 * B, B), "p": (A, B), "p_bn": (2 * B, B), "b_bn add": (2 * B, B),
        "b_bn relu": (B, B),
    }  # fmt: skip
    assert table(plan.backward) == {
        "b_bn relu": (2 * B, B), "b_bn": (4 * B, B), "b": (B, B), "p_bn": (4 * B, B), "p": (B, A),
        "a_bn relu": (2 * B, B), "a_bn": (4 * B, B), "a": (B, A),
        # no dy: nobody asks for it
        "stem_bn accumulate": (2 * A, A), "stem_bn relu": (2 * A, A), "stem_bn": (2 * A, 0),
    }  # fmt: skip
    # the stem's y and z; y and z of a; both ys and the z of the last; not the image
    assert plan.saved == 2 * A + 5 * B
    assert stock(projection(), True).saved == IMAGE + 2 * A + 5 * B
    found = table(stock(projection(), True).backward)
    assert found["stem_bn"] == (4 * A, A) and found["stem weight"] == (IMAGE + A, 0) and "stem" not in found


def test_a_bottleneck_block():
    """1×1, 3×3, 1×1 with a quarter of the channels inside: a = A/4."""
    wide, narrow, joins = 16, 4, []
    for k in range(3):
        first = 3 * k
        joins += [
            Join(first + 1, (conv(f"{k}.a", first, wide, narrow, 1),), None, RELU),
            Join(first + 2, (conv(f"{k}.b", first + 1, narrow, narrow),), None, RELU),
            Join(first + 3, (conv(f"{k}.c", first + 2, narrow, wide, 1),), first, RELU),
        ]
    case = TrafficCase(Region(1, tuple(joins), (9,)), ((2, wide, 8, 8),), 1, 1)
    A = 4 * (a := 2 * narrow * 8 * 8)
    plan = fused(case)
    # a reads y3 and the residual, writes z, mask, y1; b reads y1, writes y2; c reads y2, writes y3
    assert moved(plan.forward, "1.") == (2 * A + a + a, A + A / 8 + a + a + A)
    # c reads ds, y3, y2, writes ds2; b reads ds2, y2, y1, writes ds1; a reads ds1, y1, ds, y3 before, mask,
    # writes ds before
    assert moved(plan.backward, "1.") == (2 * A + a + 3 * a + 2 * a + 2 * A + A / 8, a + a + A)
    assert plan.saved == 3 * (A + 2 * a + A / 8)
    assert total(each for each in plan.forward if each.name.startswith("1.")).flops == 2 * 128 * (
        16 * 4 + 4 * 4 * 9 + 4 * 16
    )
    # 13.5 A: convolutions A+a, 2a, a+A; inner BatchNorms 3a each, ReLUs 2a each; the last 3A, addition 3A,
    # ReLU 2A
    assert sum(moved(stock(case).forward, "1.")) == 2 * (A + a) + 2 * a + 2 * 3 * a + 2 * 2 * a + 8 * A
    # accumulate 3A, ReLU 3A, BatchNorm 5A; inner ones 3a and 5a each; convolutions as forward; weights
    # trained: as often again
    assert sum(moved(stock(case).backward, "1.")) == 11 * A + 2 * 8 * a + 2 * (A + a) + 2 * a
    assert sum(moved(stock(case, True).backward, "1.")) == 11 * A + 2 * 8 * a + 2 * (2 * (A + a) + 2 * a)
    assert stock(case).saved == 3 * (2 * A + 4 * a)  # y and z of each; the input asks for no gradient


def test_a_residual_that_nobody_forms_is_formed_alone():
    """3 = relu(c(1) + 2), 2 = b(0) with no ReLU: read only as a residual."""
    a, b, c = conv("a", 0, 4, 4), conv("b", 0, 4, 4), conv("c", 1, 4, 4)
    joins = (Join(1, (a,), None, RELU), Join(2, (b,), None, IDENTITY), Join(3, (c,), 2, RELU))
    plan = fused(TrafficCase(Region(1, joins, (3,)), BLOCK, 1, 1))
    assert table(plan.forward)["b_bn form"] == (A, A)
    assert table(plan.forward)["c_bn form"] == (2 * A, A + A / 8)
    assert [each.name for each in plan.forward] == ["a", "b", "c", "b_bn form", "c_bn form"]
    assert table(plan.backward)["b_bn mask"] == (2 * A, A)  # ds of the last; y for the sums
    assert plan.saved == 3 * A + A / 8


def test_a_gradient_that_passes_as_it_is_costs_nothing():
    """2 = b(1) without BatchNorm and function, handed out: dz is its ds, and nothing of it is saved."""
    bare = dataclasses.replace(conv("b", 1, 4, 4), norm="", bare=True)
    joins = (Join(1, (conv("a", 0, 4, 4),), None, RELU), Join(2, (bare,), None, IDENTITY))
    plan = fused(TrafficCase(Region(1, joins, (2,)), BLOCK, 1, 1))
    assert table(plan.forward) == {"a": (A, A), "b": (A, A)}  # the raw output is handed out as it is
    assert table(plan.backward) == {"b": (2 * A, A)}  # dz and y of a; ds of it
    assert plan.saved == A


def test_a_tensor_that_two_terms_need_is_read_once():
    """1 = relu(a(0) + 0): the input's gradient is convᵀ(dy) + ds, both of one ds. Stock makes and adds
    two."""
    case = TrafficCase(Region(1, (Join(1, (conv("a", 0, 4, 4),), 0, RELU),), (1,)), BLOCK, 1, 1, wanted=True)
    assert table(fused(case).backward) == {"a_bn mask": (2 * A + A / 8, A), "a": (2 * A, A)}
    assert table(stock(case).backward)["input 0 accumulate"] == (2 * A, A)


def test_frozen_statistics():
    case = TrafficCase(basic_blocks(3), BLOCK, 1, 1, batch=False)
    plan = fused(case)
    assert table(plan.backward)["1.b"] == (2 * A, A)  # ds, not y2: dy = γ·r·ds; y1 for its sums and the mask
    assert table(plan.backward)["1.a"] == (3 * A + A / 8, A)  # y2 of the block before for its sums
    assert table(plan.backward)["2.b_bn mask"] == (2 * A + A / 8, A)
    assert (plan.forward, plan.saved) == (
        fused(TrafficCase(basic_blocks(3), BLOCK, 1, 1)).forward,
        6 * A + 3 * A / 8,
    )
    plan = stock(case)
    assert table(plan.forward)["1.a_bn"] == (A, A)
    assert table(plan.backward)["1.a_bn"] == (3 * A, A)  # ds, y for the sums; ds again; dy
    assert table(
        stock(TrafficCase(basic_blocks(3), BLOCK, 1, 1, trains=False, wanted=True, batch=False)).backward
    )["1.a_bn"] == (A, A)


def test_some_frozen_statistics():
    """Only the second block's first BatchNorm takes the batch's."""
    batch = (False, False, True, False, False, False)
    plan = fused(TrafficCase(basic_blocks(3), BLOCK, 1, 1, batch=batch))
    assert table(plan.backward)["1.b"] == (2 * A, A) and table(plan.backward)["1.a"] == (4 * A + A / 8, A)


@pytest.mark.parametrize("wanted", [False, True])
def test_the_inputs_gradient(wanted):
    """Two paths back to it: 0.a and the residual."""
    case = TrafficCase(basic_blocks(2), BLOCK, 1, 1, wanted=wanted)
    found, theirs = table(fused(case).backward), table(stock(case).backward)
    assert found.get("0.a") == ((3 * A, A) if wanted else None)  # ds1, y1, ds; no mask, no sums
    assert theirs.get("0.a") == ((A, A) if wanted else None)
    assert theirs.get("input 0 accumulate") == ((2 * A, A) if wanted else None)
    assert theirs["0.a_bn"] == ((4 * A, A) if wanted else (2 * A, 0))
    assert fused(case).saved == 4 * A + 2 * A / 8
    # a live convolution keeps its input though its weight is frozen
    assert stock(case).saved == 8 * A + wanted * A
    assert (
        total(fused(case).backward).flops == total(stock(case).backward).flops == (3 + wanted) * 2 * A * 4 * 9
    )


def test_layers_before_the_first_trained_one_leave_nothing():
    plan = fused(TrafficCase(basic_blocks(2), BLOCK, 1, 1, trains=(False, False, False, True)))
    assert plan.saved == A + A / 8
    assert [each.name for each in plan.backward] == ["1.b_bn mask"]
    assert table(plan.forward)["1.a"] == (2 * A, 2 * A)  # no mask
    plan = stock(TrafficCase(basic_blocks(2), BLOCK, 1, 1, trains=(False, False, False, True)))
    assert plan.saved == 2 * A and list(table(plan.backward)) == ["1.b_bn relu", "1.b_bn"]


def test_nothing_trains():
    case = TrafficCase(basic_blocks(2), BLOCK, 1, 1, trains=False)
    for plan in (fused(case), stock(case)):
        assert plan.backward == () and plan.saved == 0
    assert moved(fused(case).forward) == (A + A + 2 * A + A + 2 * A, A + A + 2 * A + A + A)


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
