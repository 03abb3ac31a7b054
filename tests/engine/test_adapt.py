"""fastbn.adapt beside the same written out in plain float64: outputs, γ and β; what a call leaves alone; what
reset brings back."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from habit_blocks import WrittenOut
from torch import nn

import fastbn
from bench.oracle.networks import images, scattered
from fastbn.adapt import AdaBN, AlphaBN, Tent
from fastbn.engine.fuse import fused_forward
from fastbn.errors import Diverged, UsageError

ENGINES = ("stock", "reference")


class Small(nn.Module):
    """Two convolutions, an addition, a BatchNorm1d and a dropout, of which only the first run fused."""

    def __init__(self, norm: type[nn.BatchNorm2d] = nn.BatchNorm2d):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, bias=False), norm(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), norm(6, eps=1e-3)
        self.fc1, self.bn3, self.drop = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(self.drop(F.relu(self.bn3(self.fc1(x.mean((2, 3)))))))


def plain(net, x, statistics, affine=None):
    """Small's logits, dropout off, BatchNorm by `statistics(norm, y)` -> (μ, σ²); affine: γ and β in place of
    the norms' own."""
    held = affine or {name: (norm.weight, norm.bias) for name, norm in norms(net).items()}

    def bn(name, y):
        mean, var = statistics(getattr(net, name), y)
        weight, bias = held[name]
        shape = (1, -1) + (1,) * (y.dim() - 2)
        return (y - mean.view(shape)) / (var.view(shape) + getattr(net, name).eps).sqrt() * weight.view(
            shape
        ) + bias.view(shape)

    x = bn("bn1", F.conv2d(x, net.conv1.weight)).relu()
    x = (bn("bn2", F.conv2d(x, net.conv2.weight, padding=1)) + x).relu()
    x = bn("bn3", F.linear(x.mean((2, 3)), net.fc1.weight, net.fc1.bias)).relu()
    return F.linear(x, net.fc.weight, net.fc.bias)


def of_batch(norm, y):
    rows = y.transpose(0, 1).flatten(1)
    return rows.mean(1), ((rows - rows.mean(1, keepdim=True)) ** 2).mean(1)


def blended(alpha):
    def statistics(norm, y):
        mean, var = of_batch(norm, y)
        return alpha * norm.running_mean + (1 - alpha) * mean, alpha * norm.running_var + (1 - alpha) * var

    return statistics


def norms(net):
    return {name: m for name, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def small(engine="stock", **options):
    torch.manual_seed(0)
    net = scattered(Small(**options).double())
    with torch.no_grad():
        for p in net.bn3.parameters():
            p.add_(torch.randn(8).double())
    return fastbn.fuse(fastbn.freeze(net, "bn"), engine).eval()


def bits(net):
    return {name: t.clone() for name, t in net.state_dict().items()}, [m.training for m in net.modules()]


def assert_untouched(net, before):
    state, modes = bits(net)
    assert modes == before[1] and all(torch.equal(state[name], t) for name, t in before[0].items())


BATCHES = [images(7, 9, 8, seed=seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize("engine", ENGINES)
def test_adabn_normalises_by_the_batch(engine):
    net = small(engine)
    net.bn1.train()  # modes of its own
    before, adabn = bits(net), AdaBN(net)
    with torch.no_grad():
        expected = plain(net, BATCHES[0], of_batch)
    found = adabn(BATCHES[0])
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert_untouched(net, before)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alphabn_blends_layer_by_layer(engine, alpha):
    net = small(engine)
    forward = fused_forward(net)
    before, alphabn = bits(net), AlphaBN(net, alpha)
    for x in (BATCHES[0], BATCHES[0][:1]) if alpha else BATCHES[:1]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = alphabn(x)
        with torch.no_grad():
            torch.testing.assert_close(found, plain(net, x, blended(alpha)), rtol=1e-9, atol=1e-9)
        other = AdaBN(net)(x) if alpha == 0 else net(x) if alpha == 1 else None
        if other is not None:
            torch.testing.assert_close(found, other.detach(), rtol=1e-9, atol=1e-9)
    assert_untouched(net, before)
    assert fused_forward(net) is forward


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("steps", [1, 2])
def test_tent_is_adam_on_the_entropy(engine, steps):
    net, lr = small(engine), 0.01
    before, tent = bits(net), Tent(net, lr=lr, steps=steps)
    names = list(norms(net))
    values = [p.detach().clone() for name in names for p in norms(net)[name].parameters()]
    first, second, t = [torch.zeros_like(v) for v in values], [torch.zeros_like(v) for v in values], 0
    for x in BATCHES:
        for _ in range(steps):
            leaves = [v.clone().requires_grad_() for v in values]
            pairs = dict(zip(names, zip(leaves[::2], leaves[1::2], strict=True), strict=True))
            logits = plain(net, x, of_batch, pairs)
            p = logits.exp() / logits.exp().sum(1, keepdim=True)
            gradients = torch.autograd.grad(-(p * p.log()).sum(1).mean(), leaves)
            t += 1
            for v, g, m, s in zip(values, gradients, first, second, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                s.mul_(0.999).add_(0.001 * g * g)
                v.sub_(lr * (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t)).sqrt() + 1e-8))
        found = tent(x)
        assert not found.requires_grad
        torch.testing.assert_close(found, logits.detach(), rtol=1e-7, atol=1e-7)
    affine = [p.detach() for name in names for p in norms(net)[name].parameters()]
    # where a gradient is all rounding, as β's before the next BatchNorm can be, Adam's step is of its sign
    torch.testing.assert_close(affine, values, rtol=1e-6, atol=1e-6)
    now = bits(net)
    assert now[1] == before[1] and not torch.equal(now[0]["bn1.weight"], before[0]["bn1.weight"])
    assert all(torch.equal(t, before[0][n]) for n, t in now[0].items() if n[:2] != "bn" or "running" in n)
    assert all(int(norm.num_batches_tracked) == 0 for norm in norms(net).values())


@pytest.mark.parametrize("engine", ENGINES)
def test_tent_resets_to_the_bit(engine):
    net = small(engine)
    before, tent = bits(net), Tent(net, lr=0.1)
    once = [tent(x) for x in BATCHES]
    again = [tent(x) for x in BATCHES]
    assert not torch.equal(once[1], again[1])
    tent.reset()
    assert_untouched(net, before)
    assert all(torch.equal(a, tent(x)) for a, x in zip(once, BATCHES, strict=True))


def test_an_episode_is_one_batch():
    tent = Tent(small("reference"), lr=0.1, steps=2, episodic=True)
    alone = tent(BATCHES[2])
    tent(BATCHES[0])
    assert torch.equal(tent(BATCHES[2]), alone)
    tent.episodic = False
    assert not torch.equal(tent(BATCHES[2]), alone)


@pytest.mark.parametrize("engine", ENGINES)
def test_estimate_takes_the_domains_statistics(engine):
    net = small(engine)
    before, adabn = bits(net), AdaBN(net)
    found: dict[str, list] = {name: [] for name in norms(net)}

    def noted(norm, y):
        mean, var = of_batch(norm, y)
        rows = y.numel() / y.shape[1]
        found[next(name for name, m in norms(net).items() if m is norm)].append(
            (mean, var * rows / (rows - 1))
        )
        return mean, var

    with torch.no_grad():
        for x in BATCHES:
            plain(net, x, noted)
    adabn.estimate(iter(BATCHES))
    for name, norm in norms(net).items():
        means, variances = (torch.stack(part).mean(0) for part in zip(*found[name], strict=True))
        torch.testing.assert_close(norm.running_mean, means, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(norm.running_var, variances, rtol=1e-9, atol=1e-9)
        assert norm.momentum == 0.1
    with pytest.raises(UsageError, match="no batch"):
        AdaBN(net).estimate([])
    assert not torch.equal(net.bn1.running_mean, before[0]["bn1.running_mean"])  # the estimate stands
    adabn.reset()
    assert_untouched(net, before)


def test_the_native_engine_adapts_too():
    """It does in float32, where Tent's steps differ by Adam's sign of a gradient that is all rounding: few,
    small."""
    nets = [small(engine).float() for engine in ("stock", "native")]
    x = BATCHES[0].float()
    adapted = [[AdaBN(net)(x), AlphaBN(net, 0.5)(x), Tent(net)(x), Tent(net)(x)] for net in nets]
    torch.testing.assert_close(adapted[0], adapted[1], rtol=1e-3, atol=1e-3)


def test_tent_runs_where_no_gradients_are_taken():
    first, second = Tent(small("reference")), Tent(small("reference"))
    with torch.inference_mode():
        inference = first(BATCHES[0].clone())
    with torch.no_grad():
        assert torch.equal(second(BATCHES[0]), inference)
    assert torch.equal(first.model.bn1.weight, second.model.bn1.weight)


@pytest.mark.parametrize("method", [AdaBN, Tent], ids=lambda m: m.__name__)
def test_a_norm_that_is_written_out_keeps_its_statistics(method):
    net = small(norm=WrittenOut)
    before = bits(net)
    method(net)(BATCHES[0])
    now = bits(net)
    assert all(
        torch.equal(now[0][name], t) for name, t in before[0].items() if "running" in name or "num" in name
    )


def test_a_result_of_another_form():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small()

        def forward(self, *, pixels):
            return {"logits": self.net(pixels)}

    net = Wrapped()
    expected = AdaBN(net)(pixels=BATCHES[0])["logits"]
    assert torch.equal(Tent(net, logits=lambda out: out["logits"])(pixels=BATCHES[0]), expected)
    assert AlphaBN(net, 1.0)(pixels=BATCHES[0])["logits"].shape == (7, 5)


def test_what_can_not_be_adapted_is_said():
    bare = nn.Sequential(nn.Linear(3, 3))
    untracked = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False, track_running_stats=False))
    for make, words in (
        (lambda: AdaBN(bare), "AdaBN adapts BatchNorm layers, and Sequential has none"),
        (lambda: Tent(untracked), "needs norm layers with weight or bias"),
        (lambda: AlphaBN(untracked, 0.5), "AlphaBN needs running statistics, and 1 keeps none"),
        (lambda: AdaBN(untracked).estimate(BATCHES), "AdaBN.estimate needs running statistics"),
        (lambda: AlphaBN(small(), 1.5), "0 … 1; got 1.5"),
        (lambda: AlphaBN(small(), float("nan")), "0 … 1; got nan"),
        (lambda: Tent(small(), lr=0.0), "learning rate above 0"),
        (lambda: Tent(small(), steps=0), "at least 1 step"),
    ):
        with pytest.raises(UsageError, match=words):
            make()
    assert AdaBN(untracked.double())(BATCHES[0]).shape == (7, 4, 9, 8)


def test_an_entropy_that_is_not_finite_leaves_everything():
    net = small("reference")
    before, tent = bits(net), Tent(net)
    with pytest.raises(Diverged, match="not finite"):
        tent(BATCHES[0] * float("nan"))
    assert_untouched(net, before)


def test_modes_are_back_after_an_error():
    net = small()
    net.bn2.train()
    before = bits(net)
    for method in (AdaBN(net), AlphaBN(net, 0.5), Tent(net)):
        with pytest.raises(RuntimeError):
            method(BATCHES[0][:, :2])
    with pytest.raises(RuntimeError):
        AdaBN(net).estimate([BATCHES[0], BATCHES[0][:, :2]])
    assert_untouched(net, before)
    assert all(norm.track_running_stats for norm in norms(net).values())


def test_a_copy_adapts_alone():
    net = small("reference")
    tent = Tent(copy.deepcopy(net), lr=0.1)
    before = bits(net)
    tent(BATCHES[0])
    assert_untouched(net, before)
