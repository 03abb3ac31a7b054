"""Copies, conversions and other ways to call a fused model, on float64 where values are compared."""

import copy
import io
import warnings

import pytest
import torch
from nets import chain, resnet
from torch import nn
from used import EXACT, assert_gradients, gradients, is_fused

from bench.oracle.networks import images
from bench.oracle.stock import assert_same, error, fused, run, stock, upstream
from fastbn.engine import fused_forward
from fastbn.models.resnet import FastBNOnlyResNet

pytestmark = pytest.mark.usefixtures("no_silent_fallback")


def test_deepcopy_is_independent_and_fused(model):
    run(model, images(2))
    twin = copy.deepcopy(model)
    assert fused_forward(twin).model is twin and is_fused(twin)
    twin = copy.deepcopy(model)
    theirs = stock(twin)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same(run(twin, images(2)), run(theirs, images(2)), EXACT)


def test_pickle_round_trip(model):
    run(model, images(2))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    assert fused_forward(twin).engine == "reference"
    assert_same(run(twin, images(2)), run(model, images(2)), 0.0)
    assert is_fused(twin)


def test_state_dict_both_ways(model):
    theirs = FastBNOnlyResNet(8, width=4, seed=9, engine="stock").double()
    assert list(model.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(model.state_dict())
    assert_same(run(model, images(2)), run(theirs, images(2)), EXACT)
    other = resnet(8, 4, seed=5).double()
    model.load_state_dict(other.state_dict())
    assert_same(run(model, images(2)), run(other, images(2)), EXACT)


def test_conversion(model):
    model.float()
    single = run(model, images(2).float())
    assert single.outputs[0].dtype == torch.float32
    model.to(torch.float64)
    theirs = stock(model)
    assert_same(run(model, images(2)), run(theirs, images(2)), EXACT)
    assert is_fused(model.to(memory_format=torch.channels_last))
    model.bfloat16()
    assert model(images(2).bfloat16()).dtype == torch.bfloat16


def test_functional_call(model):
    run(model, images(2))
    other = resnet(8, 4, seed=3).double()
    state = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in other.named_parameters()}
    state |= {name: b.clone() for name, b in other.named_buffers()}
    z = torch.func.functional_call(model, state, (images(2),))
    expected = stock(other)(images(2))
    assert error(z, expected) <= EXACT
    z.backward(upstream([z])[0])
    expected.backward(upstream([expected])[0])
    assert all(
        error(state[n].grad, p.grad) <= EXACT for n, p in other.named_parameters() if p.grad is not None
    )
    assert model.bn1.num_batches_tracked == 1 and state["bn1.num_batches_tracked"] == 1


def test_keyword_call(model):
    assert torch.equal(model.eval()(x=images(2)), model(images(2)))
    with pytest.raises(TypeError):
        model(images(2), nonsense=1)


def test_under_compiled_code(model):
    """The model is opaque to Dynamo: what is around it compiles."""
    theirs = stock(model)
    doubled = torch.compile(lambda x: model(x) * 2, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dynamo's own
        z = doubled(images(2))
    expected = theirs(images(2)) * 2
    z.backward(upstream([z])[0])
    expected.backward(upstream([expected])[0])
    assert error(z, expected) <= EXACT
    assert_gradients(model, gradients(theirs))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_out_is_layout_in(layout):
    net = fused(chain(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)))
    z = net(images(2, dtype=torch.float32).contiguous(memory_format=layout))
    assert z.is_contiguous(memory_format=layout)
    if layout == torch.contiguous_format:
        z.view(2, -1)  # as a user's head does


def test_an_input_of_odd_strides():
    net = chain(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
    x = images(2, 8, 16)
    for view in (x[:, :, :, ::2], x.transpose(2, 3), x[:1].expand(2, -1, -1, -1)):
        ours, theirs = fused(net.double()), stock(net.double())
        assert error(ours(view), theirs(view)) <= EXACT
