"""The native engine as a whole: whole networks against float64, its build, its memory, its manners in the
process."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from nets import resnet

from bench.oracle.networks import flip_free, images
from bench.oracle.stock import error, flat_gradient, fused, run, stock
from fastbn import FastBNOnlyResNet, explain, fuse
from fastbn.engine import select
from fastbn.engine.interface import NormTarget, NormVectors
from fastbn.engine.native import build
from fastbn.engine.native.algorithms import algorithm
from fastbn.errors import MachineError
from fastbn.graph.regions import Conv

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "tests/native/test_engine_played_memory.py::test_a_program_touches_nothing_beside_its_memory"
NETS = {
    "cifar 14": lambda: resnet(14, 16),
    "cifar 8, odd width": lambda: resnet(8, 12),
    "cifar 8, wide: Winograd in every stage": lambda: resnet(8, 32),
    "imagenet 18": lambda: resnet(18, 32, "imagenet"),
    "imagenet 50": lambda: resnet(50, 8, "imagenet"),
}


@pytest.mark.parametrize("name", NETS)
def test_gradients_without_a_flip(name):
    """β = ±6: no ReLU depends on a rounding. 2e-5 is float32's own; Winograd's F(4×4) transforms cost a few
    bits more: 1e-4."""
    model = flip_free(NETS[name]()).float()
    x = images(5, 33, 31, dtype=torch.float32, grad=True)
    found = run(fused(model, "native"), x)
    expected = run(stock(model).double(), x.detach().double().requires_grad_())
    tolerance = (
        1e-4
        if any(algorithm(conv, False) for conv in explain(fused(model, "native")).graph.regions[-1].convs)
        else 2e-5
    )
    assert error(flat_gradient(found), flat_gradient(expected)) < tolerance
    assert error(found.inputs[0], expected.inputs[0]) < tolerance
    for buffer in expected.buffers:
        assert error(found.buffers[buffer], expected.buffers[buffer]) < 1e-5, buffer


@pytest.mark.parametrize("name", NETS)
def test_gradients_of_random_nets(name):
    """A sanity check: one ReLU that flips moves stock itself by 1e-3 to 3e-2."""
    model = NETS[name]().float()
    x = images(5, 32, 32, dtype=torch.float32)
    assert (
        error(
            flat_gradient(run(fused(model, "native"), x)),
            flat_gradient(run(stock(model).double(), x.double())),
        )
        < 5e-2
    )


@pytest.mark.parametrize("name", ["cifar 14", "imagenet 18"])
def test_bfloat16_storage(name):
    """No further from float64 than stock's own autocast is, and in half the memory."""
    model = flip_free(NETS[name]()).float()
    x = images(5, 33, 31, dtype=torch.float32)
    exact = flat_gradient(run(stock(model).double(), x.double()))
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = run(fused(model, "native"), x), run(stock(model), x)
    assert ours.outputs[0].dtype == theirs.outputs[0].dtype == torch.bfloat16
    assert error(flat_gradient(ours), exact) < error(flat_gradient(theirs), exact)
    for buffer in theirs.buffers:
        assert error(ours.buffers[buffer], theirs.buffers[buffer]) < 2.0**-6, buffer


def test_evaluation_and_frozen_statistics():
    model = resnet(14, 16).float().eval()
    x = images(5, 13, 11, dtype=torch.float32)
    with torch.no_grad():
        assert error(fused(model, "native")(x), stock(model).double()(x.double())) < 1e-5
    found, expected = (
        run(fused(flip_free(model), "native"), x),
        run(stock(flip_free(model)).double(), x.double()),
    )
    assert error(flat_gradient(found), flat_gradient(expected)) < 2e-5


def test_auto_takes_it_for_fp32_on_the_cpu_only():
    model = FastBNOnlyResNet(8, width=4)
    assert explain(model).engine == "native"
    x = torch.randn(2, 3, 8, 8)
    model(x)
    assert explain(copy.deepcopy(model).double()).engine == "reference"
    with pytest.raises(MachineError, match="float32 and bfloat16, and this is float64"):
        fuse(copy.deepcopy(model).double(), "native")(x.double())


def test_exact_leaves_winograd_out():
    """15 convolutions: the stem and the projection blocks' four are direct in any case."""
    model = resnet(14, 16).float()
    assert explain(fuse(model, "native")).algorithms == {"direct": 5, "Winograd F(4×4, 3×3)": 10}
    assert explain(fuse(model, "native", exact=True)).algorithms == {"direct": 15}
    x = images(3, 16, 16, dtype=torch.float32)
    found, expected = (
        run(fuse(flip_free(model), "native", exact=True), x),
        run(stock(model).double(), x.double()),
    )
    assert error(flat_gradient(found), flat_gradient(expected)) < 2e-5


def test_images_that_tiles_hang_over_take_smaller_ones():
    """ResNet-18's last stages on 32² images are 2² and 1²: a tile of 4² would make four times the
    products, and four times the weights."""
    model = fuse(resnet(18, 32, "imagenet").float(), "native")
    convs = [
        conv
        for region in explain(model).graph.regions
        for conv in region.convs
        if conv.name.startswith("layer2.1")
    ]
    engine = select._native(False)
    names = {size: {engine.algorithm(conv, (size, size)) for conv in convs} for size in (1, 2, 3, 5, 7, 8)}
    four, two = {"Winograd F(4×4, 3×3)"}, {"Winograd F(2×2, 3×3)"}
    assert names == {1: {"direct"}, 2: two, 3: four, 5: two, 7: four, 8: four}
    model.eval()  # three values a channel make poor statistics
    for size in (32, 64, 32):  # each size finds its own packed weights
        x = images(3, size, size, dtype=torch.float32)
        found, expected = run(flip_free(model), x), run(stock(model).double(), x.double())
        model.float()
        assert error(flat_gradient(found), flat_gradient(expected)) < 1e-4


def test_explain_counts_algorithms_for_images_of_a_size():
    """The last stages' are 3² then, what smaller tiles fit as well."""
    found = [
        explain(FastBNOnlyResNet(14, engine="native"), image).algorithms
        for image in (None, (3, 32, 32), (3, 9, 9))
    ]
    assert found[0] == found[1] == {"direct": 5, "Winograd F(4×4, 3×3)": 10}
    assert found[2] == {"direct": 5, "Winograd F(4×4, 3×3)": 7, "Winograd F(2×2, 3×3)": 3}


@pytest.mark.parametrize("change", ["strided", "double", "half the length"])
def test_unusual_tensors_are_not_read_by_address(change):
    """γ as a column of a matrix, in another dtype: right all the same; of another length: stock's own
    error."""
    model = resnet(8, 16).float()
    for name in ("weight", "bias", "running_mean", "running_var"):
        old = getattr(model.layer1[0].bn1, name).detach()
        new = {
            "strided": torch.stack([old, old + 1], 1)[:, 0],
            "double": old.double(),
            "half the length": old[:8],
        }[change]
        owner = (
            model.layer1[0].bn1._buffers if name.startswith("running") else model.layer1[0].bn1._parameters
        )
        owner[name] = new if name.startswith("running") else torch.nn.Parameter(new)
    if change == "half the length":
        model.layer1[0].bn1.num_features = 8
        with pytest.warns(UserWarning, match="another shape"), pytest.raises(RuntimeError):
            fused(model, "native")(images(2, dtype=torch.float32))
    elif change == "strided":
        x = images(3, 16, 16, dtype=torch.float32)
        assert error(fused(model, "native")(x), stock(model).double()(x.double())) < 1e-4
    else:
        fused(model, "native")(images(3, dtype=torch.float32)).sum().backward()


def test_an_inner_change_of_dtype_runs_stock():
    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = (
                torch.nn.Conv2d(3, 4, 3, bias=False).double(),
                torch.nn.BatchNorm2d(4).double(),
            )
            self.conv.requires_grad_(False)

        def forward(self, x):
            return self.norm(self.conv(x.double())).relu()

    model, x = Inner(), torch.randn(2, 3, 8, 8)
    with pytest.warns(UserWarning, match="does not take torch.float64"):
        found = fused(model, "native")(x)
    assert torch.equal(found, stock(model)(x))


def test_grouped_convolutions_run_fused():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(8, 8, 3, groups=8, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
    )
    net[0].requires_grad_(False)
    assert explain(fuse(net, "native")).convolutions == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 37, 9, 13), (1, 1, 5, 5), (8, 130, 33, 20)], ids=str)
def test_a_batchnorm_alone_reads_its_input_where_it_lies(shape, dtype):
    """Nothing is copied; the statistics hold where the mean is a thousand deviations (1, 1: one channel)."""
    engine, c = select._native(False), shape[1]
    norm, vectors = torch.nn.BatchNorm2d(c), torch.empty(4, c)
    conv = Conv("", "norm", 0, c, c, (1, 1), (1, 1), (0, 0), (1, 1), c, 0, copies=True)
    x = 1000 + torch.randn(shape) * torch.linspace(1, 2, c).view(1, c, 1, 1)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    packed = engine.pack(conv, torch.ones(c, 1, 1, 1), dtype)
    target = NormTarget(norm, None, NormVectors(vectors, True))
    y, left = engine.convolve(conv, packed, x, False, False, target)
    assert y is x and left is None
    exact = x.double()
    assert error(vectors[0], exact.mean((0, 2, 3))) < 1e-7
    assert error(vectors[1], (exact.var((0, 2, 3), unbiased=False) + norm.eps).rsqrt()) < 1e-5
