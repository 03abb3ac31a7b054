"""The fused gradients against stock autograd in float64: every output, γ, β, input gradient and running
statistic."""

import copy

import pytest
import torch
from nets import chain, resnet
from torch import nn

from bench.oracle.networks import flip_free, images, norms
from bench.oracle.stock import assert_like_stock, error, flat_gradient, fused, run, stock, tolerance
from fastbn.planning.explain import explain

NETS = [  # depth, width, family, batch, height, width
    (8, 4, "cifar", 3, 32, 32),
    (8, 5, "cifar", 1, 9, 7),  # one image; channels and sides that nothing divides
    (14, 16, "cifar", 2, 8, 8),
    (14, 7, "cifar", 5, 33, 31),  # odd into every stride
    (18, 8, "imagenet", 3, 32, 32),  # its last stage is 1×1: three values a channel
    (18, 8, "imagenet", 1, 37, 69),
    (50, 8, "imagenet", 3, 33, 31),
    (50, 8, "imagenet", 5, 37, 29),
]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("depth, wide, family, batch, height, width", NETS)
def test_resnets(depth, wide, family, batch, height, width, training):
    model = resnet(depth, wide, family).train(training)
    assert_like_stock(model, images(batch, height, width, grad=batch % 2 == 1), calls=2)


def test_the_input_needs_no_gradient():
    ours = run(fused(resnet().double()), images(2))
    assert ours.inputs == [None]


def every_second(model, change):
    for norm in norms(model)[::2]:
        change(norm)


def untracked(norm):
    norm.track_running_stats, norm.running_mean, norm.running_var, norm.num_batches_tracked = (
        False,
        None,
        None,
        None,
    )


MODES = {
    "half in eval": lambda m: every_second(m, lambda n: n.eval()),
    "eval model, half train": lambda m: every_second(m.eval(), lambda n: n.train()),
    "momentum": lambda m: every_second(m, lambda n: setattr(n, "momentum", 0.37)),
    "momentum 0": lambda m: every_second(m, lambda n: setattr(n, "momentum", 0.0)),
    "cumulative": lambda m: every_second(m, lambda n: setattr(n, "momentum", None)),
    "eps": lambda m: every_second(m, lambda n: setattr(n, "eps", 0.5)),
    "untracked": lambda m: every_second(m, untracked),
    "untracked in eval": lambda m: every_second(m.eval(), untracked),
    "tracking switched off, buffers kept": lambda m: every_second(
        m, lambda n: setattr(n, "track_running_stats", False)
    ),
    "no affine": lambda m: every_second(m, lambda n: (setattr(n, "weight", None), setattr(n, "bias", None))),
    "γ alone absent": lambda m: every_second(m, lambda n: setattr(n, "weight", None)),
    "one γ frozen": lambda m: norms(m)[3].weight.requires_grad_(False),
    "one β frozen": lambda m: norms(m)[3].bias.requires_grad_(False),
    "all frozen but one": lambda m: [p.requires_grad_(p is norms(m)[4].weight) for p in m.parameters()],
    "all frozen": lambda m: m.requires_grad_(False),
    "dead and negative γ": lambda m: every_second(
        m, lambda n: nn.init.constant_(n.weight[: len(n.weight) // 2].data, 0.0)
    ),
}


@pytest.mark.parametrize("grad", [True, False], ids=["input gradient", "no input gradient"])
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_batchnorm(mode, grad):
    model = resnet(8, 6)
    MODES[mode](model)
    assert_like_stock(model, images(3, 9, 8, grad=grad), calls=3)  # three: momentum None is 1, 1/2, 1/3


CONVOLUTIONS = {
    "bias": [nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)],
    "dilation": [
        nn.Conv2d(3, 6, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(6, 4, 3, stride=2, dilation=(1, 3), padding=3),
    ],
    "groups": [
        nn.Conv2d(3, 6, 3, groups=3),
        nn.Conv2d(6, 6, 3, groups=6, padding=1),
        nn.Conv2d(6, 4, 1, groups=2),
    ],
    "same": [nn.Conv2d(3, 6, 5, padding="same"), nn.Conv2d(6, 4, (1, 3), padding="same", dilation=2)],
    "valid": [nn.Conv2d(3, 6, 3, padding="valid"), nn.Conv2d(6, 4, 2, padding="valid")],
    "kernel 5, stride 3": [nn.Conv2d(3, 6, 5, stride=3, padding=2), nn.Conv2d(6, 4, 1, stride=(2, 1))],
    "more padding than kernel": [nn.Conv2d(3, 6, 1, padding=2, stride=2), nn.Conv2d(6, 4, 3, padding=(0, 3))],
    "even kernel": [nn.Conv2d(3, 6, 4, stride=2, padding=1), nn.Conv2d(6, 4, 2, stride=2)],
    "one channel": [nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(1, 4, 3)],
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions(kind, training):
    net = chain(*copy.deepcopy(CONVOLUTIONS[kind])).train(training)
    ours = assert_like_stock(net, images(3, 13, 12, grad=True), calls=2)
    assert len(explain(ours).graph.regions[0].convs) == len(CONVOLUTIONS[kind])


def test_nothing_is_saved_before_the_first_trained_layer():
    model = resnet(14, 4).double().requires_grad_(False)
    for norm in norms(model.layer3[-1]):
        norm.requires_grad_(True)
    ours = assert_like_stock(model, images(2))

    def saved():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
            ours(images(2))
        return [t for t in kept if t.dim() == 4]

    few = saved()
    assert {t.shape for t in few} == {(2, 16, 2, 2)}  # layer3's: two raw outputs and a mask
    assert len(few) == 3
    ours.requires_grad_(False)
    assert saved() == []


@pytest.mark.parametrize("grad, count", [(True, 3), (False, 2)])
def test_no_input_gradient_is_computed_that_nobody_reads(grad, count, monkeypatch):
    net, calls, convolve = (
        fused(chain(*(nn.Conv2d(3, 3, 3) for _ in range(3)))),
        [],
        torch.nn.functional.conv_transpose2d,
    )
    monkeypatch.setattr(
        torch.nn.functional, "conv_transpose2d", lambda *args: (calls.append(1), convolve(*args))[1]
    )
    run(net, images(2, dtype=torch.float32, grad=grad))
    assert len(calls) == count


def test_an_output_before_the_first_trained_layer_needs_no_gradient():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = chain(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False))

        def forward(self, x):
            first = self.body.norms[0](self.body.convs[0](x)).relu()
            return first, self.body.norms[1](self.body.convs[1](first)).relu()

    model = Two()
    model.body.norms[0].requires_grad_(False)
    assert_like_stock(model, images(2))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("depth, wide, family, size", [(14, 16, "cifar", 16), (50, 8, "imagenet", 64)])
def test_float32_where_no_relu_flips(depth, wide, family, size, layout):
    model = flip_free(resnet(depth, wide, family))
    x = images(4, size, size).float().contiguous(memory_format=layout)
    exact = run(stock(model.double()), x.double())
    ours = run(fused(model.float()), x)
    assert error(ours.outputs[0], exact.outputs[0]) < tolerance(torch.float32, depth)
    assert error(flat_gradient(ours), flat_gradient(exact)) < tolerance(torch.float32, depth)


def test_float32_of_a_random_net():
    """A sanity check: most of this error is ReLUs that flip, for stock as for us."""
    model = resnet(14, 8)
    x = images(4, 16, 16).float()
    exact, ours = run(stock(model.double()), x.double()), run(fused(model.float()), x)
    assert error(ours.outputs[0], exact.outputs[0]) < 1e-3
    assert error(flat_gradient(ours), flat_gradient(exact)) < 5e-2


# at the last, sums in one pass are off by whole deviations
@pytest.mark.parametrize("rows", [(2, 3, 3), (8, 16, 16), (16, 128, 256)])
def test_statistics_at_a_mean_of_a_thousand_deviations(rows):
    """A 1×1 identity convolution hands the BatchNorm exactly the float32 values that the oracle reads.

    Each of y, μ·scale and scale·y is rounded at 1000σ, so x̂ = O(1) carries up to about four errors of
    eps·1000."""
    net = chain(nn.Conv2d(4, 4, 1, bias=False))
    with torch.no_grad():
        net.convs[0].weight.copy_(torch.eye(4).view(4, 4, 1, 1))
        net.norms[0].bias.fill_(12.0)  # the ReLU is open everywhere, on both sides alike
    n, h, w = rows
    x = (images(n, h, w, channels=4, seed=3) + 1000 * torch.tensor([1, -1, 1, -1]).view(1, 4, 1, 1)).float()
    exact, ours = run(stock(net.double()), x.double()), run(fused(net.float()), x)
    tol = 4 * 1000 * torch.finfo(torch.float32).eps
    spread = net.norms[0].weight.abs().max().item()
    assert (ours.outputs[0] - exact.outputs[0]).abs().max() < 4 * tol * spread  # |x̂| reaches 4
    assert error(ours.parameters["norms.0.weight"], exact.parameters["norms.0.weight"]) < tol
    assert error(ours.parameters["norms.0.bias"], exact.parameters["norms.0.bias"]) < tol
    for name in ("running_mean", "running_var"):
        assert error(ours.buffers[f"norms.0.{name}"], exact.buffers[f"norms.0.{name}"]) < tol, name


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_nan_comes_out(training):
    """One NaN pixel: the ReLUs pass it on, with and without a residual; its channel's gradient is NaN too."""
    model = fused(resnet(8, 4).double().train(training))
    x = images(2)
    x[1, 2, 3, 4] = torch.nan
    out = run(model, x)
    assert out.outputs[0][1].isnan().all()
    assert training or not out.outputs[0][0].isnan().any()
    assert out.parameters["layer1.0.bn2.weight"].isnan().all()


def test_an_infinite_gradient_stops_at_a_closed_relu():
    """Stock's does so too: 0, not ∞·0."""
    net = resnet(8, 4).double()
    for norm in norms(net):
        nn.init.constant_(norm.bias, -100.0)
    results = []
    for model in (fused(net), stock(net)):
        z = model(images(2))
        z.backward(torch.full_like(z, torch.inf))
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in results[1].items():
        assert torch.equal(results[0][name].isnan(), gradient.isnan()), name


@pytest.fixture
def poisoned_allocations():
    """torch.empty hands out NaN: an output that is not written everywhere shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.parametrize("depth, family, size", [(14, "cifar", 9), (50, "imagenet", 37)])
def test_everything_is_written(depth, family, size, poisoned_allocations):
    assert torch.empty(3).isnan().all()
    assert_like_stock(resnet(depth, 4, family), images(2, size, size, grad=True))


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


@HALVES
@pytest.mark.parametrize("parameters", ["float32", "half"])
def test_half_input(dtype, parameters):
    """Three layers, no ReLU that flips; the oracle reads the same rounded input, weights, γ and β."""
    net = flip_free(chain(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)))
    exact = copy.deepcopy(net).to(dtype).double()
    x = images(4, 12, 12).to(dtype)
    expected = run(stock(exact), x.double().requires_grad_())
    ours = run(
        fused(copy.deepcopy(exact).to(dtype) if parameters == "half" else copy.deepcopy(exact).float()),
        x.requires_grad_(),
    )
    assert ours.outputs[0].dtype == ours.inputs[0].dtype == dtype
    assert error(ours.outputs[0], expected.outputs[0]) < tolerance(dtype, 3)
    assert error(ours.inputs[0], expected.inputs[0]) < tolerance(dtype, 3)
    assert {g.dtype for g in ours.parameters.values() if g is not None} == {
        dtype if parameters == "half" else torch.float32
    }
    assert error(flat_gradient(ours), flat_gradient(expected)) < tolerance(dtype, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast(dtype):
    """Outputs of stock's dtype, γ's gradients of γ's. Autocast leaves float64 as it is."""
    model = flip_free(resnet(8, 8)).to(dtype)
    x = images(4, 12, 12, dtype=dtype)
    exact = run(stock(model.double()), x.double())
    model.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = run(fused(model), x), run(stock(model), x)
    assert ours.outputs[0].dtype == theirs.outputs[0].dtype
    assert error(ours.outputs[0], exact.outputs[0]) < tolerance(torch.bfloat16, 3)
    assert {g.dtype for g in ours.parameters.values() if g is not None} == {dtype}
    assert error(flat_gradient(ours), flat_gradient(exact)) < tolerance(torch.bfloat16, 8)
