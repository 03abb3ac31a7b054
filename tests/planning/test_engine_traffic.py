"""The traffic model against counts by hand, and against what the reference engine and stock PyTorch really
save and launch.

A is one activation of the block in hand, in elements, and elements are of one byte unless said: a mask is A/8
bytes."""

import dataclasses

import pytest
from regions import conv
from traffic_blocks import BLOCK, basic_blocks, moved

from fastbn.graph.activations import IDENTITY, RELU
from fastbn.graph.regions import Join, Region
from fastbn.planning.cost import Cost, total
from fastbn.planning.traffic import TrafficCase, fused, stock

A = 2 * 4 * 8 * 8


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
