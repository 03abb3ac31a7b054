"""freeze, trainable, count: chosen by module type, whatever the names."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from runs import digits, network
from torch import nn

import fastbn
from fastbn.choices import TRAIN_MODES
from fastbn.errors import UsageError
from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.trainable import count, entries, freeze, trainable

NORMS = [
    nn.BatchNorm1d(3),
    nn.BatchNorm2d(3),
    nn.BatchNorm3d(3),
    nn.SyncBatchNorm(3),
    nn.InstanceNorm1d(3, affine=True),
    nn.InstanceNorm2d(3, affine=True),
    nn.InstanceNorm3d(3, affine=True),
    nn.GroupNorm(1, 3),
    nn.LayerNorm(3),
    nn.RMSNorm(3),
]


class Misleading(nn.Module):
    """Names that say the opposite of what the modules are."""

    def __init__(self):
        super().__init__()
        self.fc = nn.BatchNorm2d(4)
        self.bn = nn.Conv2d(4, 4, 1)
        self.first = nn.Linear(4, 3)
        self.norm = nn.Linear(3, 2)
        self.conv = nn.LayerNorm(3, bias=False)
        self.gamma = nn.Parameter(torch.ones(5))
        self.plain = nn.BatchNorm2d(4, affine=False)


def names(model):
    return {name for name, _ in trainable(model)}


@pytest.mark.parametrize(
    "train, expected",
    [
        ("bn", {"fc.weight", "fc.bias", "conv.weight"}),
        ("gamma", {"fc.weight", "conv.weight"}),
        ("beta", {"fc.bias"}),
        ("output", {"norm.weight", "norm.bias"}),
        ("none", set()),
        ("gamma+output", {"fc.weight", "conv.weight", "norm.weight", "norm.bias"}),
        ("beta + none", {"fc.bias"}),
        ("all", {name for name, _ in Misleading().named_parameters()}),
        ("bn+all", {name for name, _ in Misleading().named_parameters()}),
        (
            "all-bn",
            {"bn.weight", "bn.bias", "first.weight", "first.bias", "norm.weight", "norm.bias", "gamma"},
        ),
        ("random=1+output", {"bn.weight", "norm.weight", "norm.bias"}),
        ("bn@first-1", {"fc.weight", "fc.bias"}),
        ("bn@last-1+beta@first-1", {"conv.weight", "fc.bias"}),
        ("all@first", {"first.weight", "first.bias"}),
        ("all@[bn]*", {"bn.weight", "bn.bias", "norm.weight", "norm.bias"}),
    ],
)
def test_chooses_by_type(train, expected):
    model = Misleading()
    assert freeze(freeze(model, "none"), train) is model and names(model) == expected
    assert names(freeze(freeze(model, "all"), train)) == expected  # whatever was set before


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_every_norm_is_one(norm):
    model = freeze(nn.Sequential(nn.Conv2d(3, 3, 1), norm))
    assert names(model) == {"1." + name for name, _ in norm.named_parameters()} and names(model)
    assert names(freeze(model, "gamma")) == {"1.weight"}


def test_a_subclass_is_its_type():
    class Mine(nn.BatchNorm2d):
        pass

    assert names(freeze(nn.Sequential(nn.Conv2d(3, 3, 1), Mine(3)))) == {"1.weight", "1.bias"}


def test_count_and_order():
    model = freeze(Misleading())
    assert count(model) == (4 + 4 + 3, 8 + 20 + 15 + 8 + 3 + 5)
    freeze(model, "all")
    assert trainable(model) == list(model.named_parameters())


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[1].weight = model[0].weight
    assert count(freeze(model)) == (9, 9)
    assert count(freeze(model, "beta")) == (6, 9)


def test_output_of_a_parametrised_layer():
    model = nn.Sequential(nn.BatchNorm1d(3), torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    assert count(freeze(model, "output")) == (2 + 6 + 2, 6 + 2 + 6 + 2)


def test_an_optimizer_that_holds_a_frozen_parameter_leaves_it():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    model(torch.randn(4, 1, 3, 3)).square().sum().backward()
    before = model[0].weight.detach().clone()
    freeze(model)
    optimizer.step()
    assert (
        torch.equal(before, model[0].weight)
        and model[0].weight.grad is None
        and model[1].weight.grad is not None
    )


@pytest.mark.parametrize(
    "model, train, message",
    [
        (Misleading(), "gama", "one of bn, gamma, .*, none, got 'gama'; nearest: gamma"),
        (Misleading(), "bn+", "got ''"),
        (Misleading(), "zzz", "got 'zzz'$"),
        (Misleading(), None, "joined by '\\+', got None"),
        (nn.Sequential(nn.Linear(2, 2)), "bn", "Sequential has no norm layer"),
        (nn.Sequential(nn.BatchNorm2d(2, affine=False)), "bn", "1 norm layers, none with such a parameter"),
        (nn.Sequential(nn.RMSNorm(2)), "beta", "needs norm layers with bias"),
        (nn.Sequential(nn.BatchNorm2d(2)), "output", "needs an nn.Linear"),
        (Misleading(), "random", "random=K needs the number .* got 'random'"),
        (Misleading(), "random=0", "at least 1"),
        (Misleading(), "random=5", "a channel of bn has 4 weights"),
        (Misleading(), "bn=2", "bn takes no number"),
        (Misleading(), "bn@", "needs first-N, last-N, or a module's name"),
        (Misleading(), "bn@first-4", "has 2 such layers; ask for 1 … 2"),
        (Misleading(), "bn@layer1", r"selects none of the 2 such layers of Misleading \(fc, conv\)"),
        (
            nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()),
            "shortcut",
            "on its shortcut, and Sequential has none",
        ),
        (nn.Sequential(nn.Linear(2, 2)), "random=1", "needs a convolution"),
    ],
)
def test_errors(model, train, message):
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(UsageError, match=message):
        freeze(model, train)
    assert before == [p.requires_grad for p in model.parameters()]


class Residual(nn.Module):
    """A projection under a name that says nothing, a norm after it or none, and a block with an identity."""

    def __init__(self, normalised=True):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
        )
        self.downsample, self.n = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4) if normalised else nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        short = self.n(self.a(x)) if isinstance(self.n, nn.BatchNorm2d) else self.a(x)
        x = self.c(self.b(x).relu()) + short
        x = x.relu()
        return self.head(x.add(self.downsample(x)).mean((2, 3)))


@pytest.mark.parametrize("normalised", [True, False])
def test_shortcuts_by_the_network_s_shape(normalised):
    # beside the identity there is none
    assert names(freeze(Residual(normalised), "shortcut")) == {"a.weight", "a.bias"}


@pytest.mark.parametrize("depth, expected", [(14, 2), (18, 3), (50, 4)])
def test_shortcuts_of_resnets_are_their_projections(depth, expected):
    with torch.device("meta"):
        model = FastBNOnlyResNet(depth, family="imagenet" if depth > 14 else None, engine="stock")
    found = names(freeze(model, "shortcut"))
    assert len(found) == expected and all(name.endswith("downsample.0.weight") for name in found)
    assert count(freeze(model, "bn@layer1"))[0] == 2 * sum(
        m.num_features for m in model.layer1.modules() if isinstance(m, nn.BatchNorm2d)
    )


def test_random_weights_of_each_channel():
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1, groups=1), nn.Flatten(), nn.Linear(4, 2)
    )
    freeze(model, "random=2", seed=1)
    assert names(model) == {"0.weight", "2.weight"} and count(model)[0] == 2 * (5 + 4)
    masks = entries(model)
    assert [masks[name].flatten(1).sum(1).tolist() for name in masks] == [[2] * 5, [2] * 4]
    again, other = (
        entries(freeze(copy.deepcopy(model), "random=2", seed=1)),
        entries(freeze(copy.deepcopy(model), "random=2", seed=2)),
    )
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    assert any(not torch.equal(masks[name], other[name]) for name in masks)
    model(torch.randn(6, 3, 3, 3)).square().sum().backward()
    for name, mask in masks.items():
        gradient = model.get_parameter(name).grad
        assert gradient[~mask].eq(0).all() and gradient[mask].ne(0).all()
    assert not entries(freeze(model, "bn")) and count(model)[0] == 10
    assert not [name for name in model.state_dict() if "entries" in name]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fit_trains_the_drawn_weights_alone(tmp_path, optimizer):
    """Weight decay too leaves the others' bits; and what was saved knows which ones train."""
    model = freeze(network(engine="stock"), "random=2+output", seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = {"weight_decay": 0.1, "optimizer": optimizer, "epochs": 1, "batch_size": 32}
    fastbn.fit(model, digits()[0], None, progress=False, **recipe)
    for name, mask in entries(model).items():
        after = model.get_parameter(name)
        assert torch.equal(after[~mask], before[name][~mask]) and not torch.equal(
            after[mask], before[name][mask]
        )
    assert not torch.equal(model.fc.weight, before["fc.weight"]) and torch.equal(
        model.bn1.weight, before["bn1.weight"]
    )
    fastbn.save(model, tmp_path / "model.safetensors")
    again = fastbn.load(tmp_path / "model.safetensors")
    assert count(again) == count(model) and entries(again).keys() == entries(model).keys()
    assert all(torch.equal(mask, entries(model)[name]) for name, mask in entries(again).items())


def test_the_names_are_had_without_torch():
    code = (
        "import sys, fastbn.choices, fastbn.models.init_names, fastbn.models.families as f; "
        "print('torch' in sys.modules, fastbn.choices.TRAIN_MODES, f.resolve(20).width)"
    )
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    out = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=60,
    )
    assert out.stdout == f"False {TRAIN_MODES} 16\n"
