"""What ordinary use of a fused model does: each thing that a user of PyTorch expects, on float64 where
values are compared."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from nets import chain, resnet
from torch import nn
from torch.utils.checkpoint import checkpoint
from used import EXACT, assert_gradients, gradients, is_fused

from bench.oracle.networks import images, norms
from bench.oracle.stock import assert_like_stock, assert_same, error, fused, run, stock, upstream
from fastbn.engine import fuse, fused_forward
from fastbn.errors import MachineError, UsageError
from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.planning.explain import explain

pytestmark = pytest.mark.usefixtures("no_silent_fallback")


# ------ storage and the autograd graph


def test_two_forwards_alive_before_either_backward(model):
    theirs = stock(model)
    first, second = images(2, seed=1), images(3, 9, 9, seed=2)
    ours = [model(first), model(second)]
    expected = [theirs(first), theirs(second)]
    for i in (1, 0):  # the later forward first
        for net, z in ((model, ours[i]), (theirs, expected[i])):
            net.zero_grad()
            z.backward(upstream([z], seed=i)[0])
        assert_gradients(model, gradients(theirs))


def test_two_backwards_accumulate(model):
    once = run(model.eval(), images(2))
    expected = {name: g.clone() for name, g in once.parameters.items() if g is not None}
    z = model(images(2))
    z.backward(upstream([z])[0])
    assert_gradients(model, expected, times=2)


def test_gradients_of_two_calls_share_no_storage(model):
    run(model, images(2))
    first = [p.grad for p in model.parameters() if p.grad is not None]
    kept = [g.clone() for g in first]
    run(model, images(2, seed=5))
    for before, copied in zip(first, kept, strict=True):
        assert torch.equal(before, copied)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("relu", [True, False])
def test_outputs_may_be_edited_in_place(relu, layout):
    """The edit is differentiated. (Stock refuses one after a ReLU, which saved that output; fused it needs
    no copy.)"""

    class Edited(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = chain(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 1, bias=False))

        def forward(self, x):
            x = self.body.norms[0](self.body.convs[0](x)).relu()
            x = self.body.norms[1](self.body.convs[1](x))
            return x.relu() if relu else x

    net = Edited().double()
    x = images(2).contiguous(memory_format=layout)
    ours, theirs = fused(net), stock(net)
    for each in (ours, theirs):
        z = each(x).clone() if relu and each is theirs else each(x)
        z.mul_(3.0).add_(1.0)
        z.backward(upstream([z])[0])
    assert_gradients(ours, gradients(theirs))


def test_double_backward_raises(model):
    x = images(2, grad=True)
    z = model(x)
    (dx,) = torch.autograd.grad(z, x, upstream([z])[0], create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives"):
        (z.square().sum() + dx.square().sum()).backward()


def test_create_graph_alone_is_a_first_derivative(model):
    expected = {
        name: g.clone() for name, g in run(fused(model), images(2)).parameters.items() if g is not None
    }
    z = model(images(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about the cycle that this leaves
        z.backward(upstream([z])[0], create_graph=True)
    assert_gradients(model, expected)


def test_retain_graph_gives_the_same_gradient_twice(model):
    z = model(images(2))
    z.backward(upstream([z])[0], retain_graph=True)
    expected = gradients(model)
    z.backward(upstream([z])[0])
    assert_gradients(model, expected, times=2)
    with pytest.raises(RuntimeError, match="second time"):
        z.backward(upstream([z])[0])


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(model, reentrant):
    theirs = stock(model)
    results = []
    for net in (model, theirs):
        x = images(2, grad=True)
        z = checkpoint(net, x, use_reentrant=reentrant)
        z.backward(upstream([z])[0])
        results.append((x.grad, gradients(net), [norm.num_batches_tracked.item() for norm in norms(net)]))
    assert error(results[0][0], results[1][0]) <= EXACT
    assert_gradients(model, results[1][1])
    assert results[0][2] == results[1][2]


# ------ parameters that change


def test_loaded_weights_are_seen(model):
    other = resnet(8, 4, seed=3).double()
    run(model, images(2))
    model.load_state_dict(other.state_dict())
    assert_same(run(model, images(2)), run(stock(other), images(2)), EXACT)
    for norm in norms(other):
        nn.init.constant_(norm.bias, 0.25)
    model.load_state_dict(other.state_dict(), assign=True)
    theirs = stock(model)
    assert_same(run(model, images(2, seed=4)), run(theirs, images(2, seed=4)), EXACT)


def test_a_new_weight_at_a_freed_address_is_seen():
    """Two exchanges with no forward between: the allocator may hand out the first weight's address again (295
    KB are a mapping of their own, which the next one of that size tends to get back)."""
    model = fused(chain(nn.Conv2d(3, 64, 1, bias=False), nn.Conv2d(64, 64, 3, bias=False))).double().eval()
    conv, shape = model.convs[1], (64, 64, 3, 3)
    for _ in range(5):
        found, theirs = model(images(2)), stock(model)(images(2))
        assert error(found, theirs) <= EXACT
        del found, theirs
        conv.weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64), requires_grad=False)
        conv.weight = nn.Parameter(torch.randn(shape, dtype=torch.float64), requires_grad=False)


def test_a_weight_edited_between_forward_and_backward_raises(model):
    z = model(images(2))
    with torch.no_grad():
        model.layer2[0].conv1.weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"layer2\.0\.conv1\.weight was modified in place"):
        z.backward(upstream([z])[0])


def test_a_step_between_forward_and_backward_leaves_the_gradient_of_the_forward(model):
    """γ and β are copied by the forward, so an optimizer's step before the backward does no harm."""
    expected = {
        name: g.clone() for name, g in run(fused(model), images(2)).parameters.items() if g is not None
    }
    z = model(images(2))
    with torch.no_grad():
        for norm in norms(model):
            norm.weight.mul_(2)
            norm.running_mean.zero_()
    z.backward(upstream([z])[0])
    assert_gradients(model, expected)


def test_a_convolution_made_trainable_gets_its_gradient(model):
    run(model, images(2))
    model.layer2[0].conv2.weight.requires_grad_(True)
    theirs = stock(model)
    assert_same(run(model, images(2)), run(theirs, images(2)), EXACT)
    assert model.layer2[0].conv2.weight.grad is not None
    assert ("layer2.0.conv2", "its weight or bias trains") in explain(model).graph.stock
    model.layer2[0].conv2.weight.requires_grad_(False)
    model.layer2[0].conv2.weight.grad = None
    assert is_fused(model)


def test_exchanged_submodules_are_seen(model):
    run(model, images(2))
    model.fc = nn.Linear(16, 3).double()
    norm = nn.BatchNorm2d(4, momentum=0.5).double()
    model.layer1[0].bn2 = norm
    nn.init.uniform_(norm.weight)
    theirs = stock(model)
    assert_same(run(model, images(2)), run(theirs, images(2)), EXACT)
    assert norm.weight.grad is not None and norm.num_batches_tracked == 1
    model.layer1[0].bn1 = nn.Identity()
    theirs = stock(model)
    assert_same(run(model, images(2)), run(theirs, images(2)), EXACT)
    assert any(
        conv.name == "layer1.0.conv1" and conv.bare
        for region in explain(model).graph.regions
        for conv in region.convs
    )


def test_frozen_weights_keep_their_bits(model):
    model.fc.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    for seed in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images(4, seed=seed)), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert (name in before) == (parameter.grad is None)
        assert name not in before or torch.equal(parameter, before[name])
    assert any(name.endswith("conv1.weight") for name in before)


def test_modes_in_any_order(model):
    """train, eval, no_grad and inference_mode in any order, and training after them."""
    theirs = stock(model)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        for training in (True, False):
            with mode():
                ours, expected = model.train(training)(images(2)), theirs.train(training)(images(2))
            assert error(ours, expected) <= EXACT
            assert ours.requires_grad == expected.requires_grad
    assert_same(run(model.train(), images(2)), run(theirs.train(), images(2)), EXACT)


# ------ calls that are not for the engine


def test_a_hook_on_a_submodule_runs_stock(model):
    theirs = stock(model)
    fired = []
    handle = model.layer1[0].bn1.register_forward_hook(
        lambda module, inputs, output: fired.append(output.shape)
    )
    with pytest.warns(UserWarning) as caught:
        for _ in range(2):
            assert_same(run(model, images(2)), run(theirs, images(2)), EXACT)
    assert [str(w.message) for w in caught] == [
        "fastbn runs FastBNOnlyResNet stock in this call: layer1.0.bn1 has a hook"
    ]
    assert fired == [(2, 4, 8, 8)] * 2
    handle.remove()
    assert is_fused(model)
    assert len(fired) == 2


def test_a_hook_on_the_model_runs_fused(model):
    fired = []
    model.register_forward_hook(lambda module, inputs, output: fired.append(output.shape))
    assert is_fused(model)
    assert fired == [(2, 10)]


def test_one_value_per_channel_raises_as_stock_does():
    net = chain(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    for each in (fused(net), stock(net)):
        with (
            warnings.catch_warnings(),
            pytest.raises(ValueError, match="more than 1 value per channel when training"),
        ):
            warnings.simplefilter("ignore")
            each(images(1, 2, 2, dtype=torch.float32))
    assert_like_stock(net.eval(), images(1, 2, 2))
    net.norms[0].train()
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match="more than 1 value per channel when training"),
    ):
        warnings.simplefilter("ignore")
        fused(net)(images(1, 2, 2, dtype=torch.float32))


@pytest.mark.parametrize("engine, error_type", [("nope", UsageError), ("triton", MachineError)])
def test_engines_that_cannot_be(model, engine, error_type, no_gpu):
    with pytest.raises(error_type, match=engine):
        fuse(model, engine)
    with pytest.raises(error_type, match=engine):
        FastBNOnlyResNet(8, width=4, engine=engine)
    assert is_fused(model)  # what was there stays


def test_stock_undoes_fuse(model):
    assert fused_forward(model) is not None
    assert fuse(model, "stock") is model
    assert fused_forward(model) is None and "forward" not in vars(model)
