"""The Triton engine as a whole: whole networks against stock PyTorch in float64, in the interpreter."""

from __future__ import annotations

import copy

import interpreted
import pytest
import torch
from nets import chain, resnet
from torch import nn

from bench.oracle.networks import flip_free, images, norms
from bench.oracle.stock import error, flat_gradient, fused, run, stock
from fastbn import FastBNOnlyResNet, explain
from fastbn.engine.context import mixed as storage
from fastbn.engine.triton.tuning import LIBRARY, ROLLING, TAPS

if interpreted.DEVICE != "cpu":
    pytest.skip("on a GPU bench/gpu_check.sh holds the engine to more", allow_module_level=True)

NETS = {
    "cifar 8, width 16: every stage rolls": lambda: resnet(8, 16),
    "cifar 8, width 12: none does": lambda: resnet(8, 12),
    "imagenet 18": lambda: resnet(18, 16, "imagenet"),
    "imagenet 50": lambda: resnet(50, 8, "imagenet"),
}


def gradients(model, x):
    """Return, by the Triton engine and by stock in float64, each run's outputs, gradients and running
    statistics."""
    found = run(fused(model, "triton"), x)
    return found, run(stock(model).double(), x.detach().double().requires_grad_(x.requires_grad))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "imagenet" in name else ()) for name in NETS]
)
def test_gradients_without_a_flip(name):
    """β = ±6: no ReLU depends on a rounding. 2e-5 is float32's own."""
    model = flip_free(NETS[name]()).float()
    # sixteen rows for the last BatchNorms: of two, stock itself is off by 1e-3
    size = (4, 33, 33) if "imagenet" in name else (2, 7, 5)
    found, expected = gradients(model, images(*size, dtype=torch.float32, grad=True))
    assert error(flat_gradient(found), flat_gradient(expected)) < 2e-5
    assert error(found.inputs[0], expected.inputs[0]) < 2e-5
    assert error(found.outputs[0], expected.outputs[0]) < 2e-5
    for buffer in expected.buffers:
        assert error(found.buffers[buffer], expected.buffers[buffer]) < 1e-5, buffer


def test_half_storage():
    """Nothing but storage is rounded: float16's 2⁻¹¹ an activation, over eight layers and back."""
    model = flip_free(resnet(8, 16)).half()
    for norm in norms(model):
        norm.float()  # as PyTorch's own half BatchNorm has them
    found = run(fused(model, "triton"), images(2, 5, 5, dtype=torch.float16))
    expected = run(stock(copy.deepcopy(model)).double(), images(2, 5, 5, dtype=torch.float16).double())
    assert error(flat_gradient(found), flat_gradient(expected)) < 5e-3


def test_mixed_storage():
    """float16 activations beside wider gradients (bfloat16 on a GPU; the interpreter has none): what goes
    in and out is float32."""
    model = flip_free(resnet(8, 16)).float()
    x = images(2, 5, 7, dtype=torch.float32, grad=True)
    with storage(gradients=torch.float32):
        found = run(fused(model, "triton"), x)
    expected = run(stock(model).double(), x.detach().double().requires_grad_())
    assert found.outputs[0].dtype == found.inputs[0].dtype == torch.float32
    assert 5e-5 < error(found.outputs[0], expected.outputs[0]) < 5e-3  # float32 is off by 2e-5 at most
    assert error(flat_gradient(found), flat_gradient(expected)) < 5e-3
    assert error(found.inputs[0], expected.inputs[0]) < 5e-3


def every_second(model, change):
    for norm in norms(model)[::2]:
        change(norm)


def mixed(model):
    """Every second BatchNorm has a large eps and the cumulative average, the last of them are frozen or
    train no γ."""
    every_second(model, lambda norm: (setattr(norm, "momentum", None), setattr(norm, "eps", 0.1)))
    norms(model)[-1].eval()
    norms(model)[-3].eval()
    norms(model)[-4].weight.requires_grad_(False)


MODES = {"frozen statistics": lambda model: model.eval(), "some of each": mixed}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_batchnorm(mode):
    model = flip_free(resnet(8, 16)).float()
    MODES[mode](model)
    ours, x = fused(model, "triton"), images(2, 6, 5, dtype=torch.float32)
    for _ in range(2):  # the second call moves statistics that have moved
        found, expected = run(ours, x), run(stock(model).double(), x.double())
        model.load_state_dict(ours.state_dict())
        assert error(flat_gradient(found), flat_gradient(expected)) < 2e-5
    for buffer in expected.buffers:
        assert error(found.buffers[buffer], expected.buffers[buffer]) < 1e-5, buffer


@pytest.mark.parametrize("affine", [True, False])
def test_biased_convolutions_without_affine_or_tracking(affine):
    convs = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 24, 1)
    model = chain(*convs, affine=affine, track_running_stats=affine).float()
    x = images(2, 6, 5, dtype=torch.float32, grad=True)
    found, expected = gradients(model, x)
    assert error(found.outputs[0], expected.outputs[0]) < 2e-5
    assert error(found.inputs[0], expected.inputs[0]) < 1e-4  # of a random net: no ReLU flips at this seed
    if affine:
        for buffer in expected.buffers:
            assert error(found.buffers[buffer], expected.buffers[buffer]) < 1e-5, buffer


@pytest.mark.slow
def test_runs_repeat_bit_for_bit():
    x = images(3, 8, 8, dtype=torch.float32)
    first, second = (run(fused(resnet(8, 16).float(), "triton"), x) for _ in range(2))
    assert torch.equal(flat_gradient(first), flat_gradient(second))


def test_what_carries_each_convolution_out():
    assert explain(FastBNOnlyResNet(14, engine="triton")).algorithms == {TAPS: 5, ROLLING: 10}
    assert set(explain(FastBNOnlyResNet(18, engine="triton", family="imagenet")).algorithms) == {
        TAPS,
        ROLLING,
        LIBRARY,
    }
