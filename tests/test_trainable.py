"""freeze, trainable, count: chosen by module type, whatever the names."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from fastbn.choices import TRAIN_MODES
from fastbn.errors import UsageError
from fastbn.trainable import count, freeze, trainable

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
    assert torch.equal(before, model[0].weight) and model[0].weight.grad is None and model[1].weight.grad is not None


@pytest.mark.parametrize(
    "model, train, message",
    [
        (Misleading(), "gama", "one of bn, gamma, beta, output, all, none, got 'gama'; nearest: gamma"),
        (Misleading(), "bn+", "got ''"),
        (Misleading(), "zzz", "got 'zzz'$"),
        (Misleading(), None, "joined by '\\+', got None"),
        (nn.Sequential(nn.Linear(2, 2)), "bn", "Sequential has no norm layer"),
        (nn.Sequential(nn.BatchNorm2d(2, affine=False)), "bn", "1 norm layers, none with such a parameter"),
        (nn.Sequential(nn.RMSNorm(2)), "beta", "needs norm layers with bias"),
        (nn.Sequential(nn.BatchNorm2d(2)), "output", "needs an nn.Linear"),
    ],
)
def test_errors(model, train, message):
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(UsageError, match=message):
        freeze(model, train)
    assert before == [p.requires_grad for p in model.parameters()]


def test_the_names_are_had_without_torch():
    code = (
        "import sys, fastbn.choices, fastbn.models.inits, fastbn.models.families as f; "
        "print('torch' in sys.modules, fastbn.choices.TRAIN_MODES, f.resolve(20).width)"
    )
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    out = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert out.stdout == f"False {TRAIN_MODES} 16\n"
