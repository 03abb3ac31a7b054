"""γ and β, firing, features: against plain loops and hooks over the stock network."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import resnet
from runs import digits
from torch import nn

import fastbn
from bench.oracle.networks import images, norms, scattered
from fastbn.analysis import affine as values
from fastbn.analysis.features import feature_maps, filters
from fastbn.analysis.firing import exciting, firing
from fastbn.errors import UsageError
from fastbn.training.affine_statistics import statistics

TEST = digits()[1]


def normalised(test):
    """Return the pixels in float32, as a data set's table rounds them once."""
    x = test.images.permute(0, 3, 1, 2).float() / 255
    return ((x - torch.tensor(test.mean).view(3, 1, 1)) / torch.tensor(test.std).view(3, 1, 1)).double()


class Relus(nn.Module):
    """Its ReLUs are modules, so that hooks see them; one follows no BatchNorm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()
        self.fc = nn.Linear(5, 10)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(x + self.bn2(self.conv2(x)))
        return self.fc(F.relu(x.mean((2, 3))))


def watched(model, x):
    seen = {}
    hooks = [
        getattr(model, f"relu{i}").register_forward_hook(lambda m, a, z, i=i: seen.update({f"bn{i}": z}))
        for i in (1, 2)
    ]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("trains", ["bn", "all"])
def test_firing_is_what_hooks_see(trains):
    model = fastbn.freeze(scattered(Relus()).double(), trains)
    with torch.no_grad():
        model.bn1.bias[0], model.bn1.bias[1], model.bn1.weight[1] = -90.0, 90.0, 0.5
    seen = watched(model, normalised(TEST))
    found = firing(model, TEST, "reference")
    assert [one.name for one in found] == ["bn1", "bn2"]
    for one in found:
        z = seen[one.name]
        assert one.fired.tolist() == [int((z[:, c] > 0).sum()) for c in range(5)]
        assert one.seen == z[:, 0].numel()
        assert one.dead == sum(bool((z[:, c] == 0).all()) for c in range(5)) / 5
        assert one.always == sum(bool((z[:, c] > 0).all()) for c in range(5)) / 5
    assert found[0].dead >= 0.2 and found[0].always >= 0.2
    assert {p.requires_grad for p in model.conv1.parameters()} == {
        trains == "all"
    } and model.bn1.bias.grad is None


def test_every_engine_and_every_relu_of_a_resnet():
    model = resnet(14, 4)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = {engine: firing(model, TEST, engine) for engine in ("auto", "reference")}
    assert len(found["auto"]) == 13  # one a convolution of the 14 layers
    for one, other in zip(found["auto"], found["reference"], strict=True):
        assert (one.name, one.seen) == (other.name, other.seen)
        # float32: a ReLU that depends on a rounding
        assert (one.fired - other.fired).abs().max() <= 0.01 * one.seen
    assert model.training and all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items()
    )


def test_exciting_images():
    model = scattered(Relus()).double()
    peaks = watched(model, normalised(TEST))["bn2"].amax((2, 3))  # (N, C)
    found = exciting(model, TEST, "bn2", 3, "reference")
    for c in range(5):
        order = sorted(range(len(TEST)), key=lambda n, c=c: -float(peaks[n, c]))[:3]
        assert found.values[c].tolist() == pytest.approx([float(peaks[n, c]) for n in order])
        assert [float(peaks[n, c]) for n in found.indices[c]] == pytest.approx(
            [float(peaks[n, c]) for n in order]
        )
    with pytest.raises(UsageError, match=r"'fc'.*bn1, bn2"):
        exciting(model, TEST, "fc", engine="reference")


def test_nothing_to_watch():
    with pytest.raises(UsageError, match="nothing to watch"):
        firing(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), TEST)
    with pytest.raises(UsageError, match="stock"):
        firing(resnet(8, 4), TEST, "stock")


def test_filters_and_feature_maps():
    model, x = resnet(8, 4).double(), images(2, 9, 9)
    own = filters(model)
    assert own.name == "conv1" and torch.equal(own.weight, model.conv1.weight)
    norm = model.bn1
    pairs = zip(norm.weight.tolist(), norm.running_var.tolist(), strict=True)
    assert own.scale.tolist() == pytest.approx([g / math.sqrt(v + norm.eps) for g, v in pairs])
    maps = feature_maps(fastbn.fuse(model, "reference"), x, "bn1")
    raw = F.conv2d(x, model.conv1.weight, padding=1)
    assert torch.allclose(maps.raw, raw)
    assert torch.allclose(
        maps.normalised, F.batch_norm(raw, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    with pytest.raises(UsageError, match=r"'layer9'.*bn1"):
        feature_maps(model, x, "layer9")
    with pytest.raises(UsageError, match="no Conv2d"):
        filters(nn.Linear(2, 2))


def test_gamma_and_beta():
    model = resnet(8, 4)
    found = values.affine(model)
    assert found.names == [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    gamma = [norm.weight.tolist() for norm in norms(model)]
    assert [own.tolist() for own in found.gamma] == gamma
    assert values.small(found, 0.3).tolist() == [sum(abs(g) < 0.3 for g in own) / len(own) for own in gamma]
    flat = [g for own in gamma for g in own]
    assert values.small_overall(found, 0.3) == pytest.approx(sum(abs(g) < 0.3 for g in flat) / len(flat))
    at = values.edges([found], "gamma", 12)
    assert len(at) == 13 and 0.0 in at and at[0] <= min(flat) and at[-1] >= max(flat)
    counted = values.histogram(found, "gamma", at)
    by_hand = [sum(low <= g < high for g in flat) for low, high in itertools.pairwise(at)]
    assert counted.counts.tolist() == by_hand and sum(by_hand) == len(flat)
    assert counted.shares.sum() == pytest.approx(1) and counted.layers.shape == (9, 12)


@pytest.mark.parametrize(
    "low, high", [(0.0, 1.0), (-1.0, 0.0), (0.5, 0.6), (-3.0, 0.001), (-0.001, 3.0), (0.0, 0.0)]
)
def test_edges_hold_everything(low, high):
    found = values.Affine(["a"], [np.array([low, high])], [np.zeros(2)])
    at = values.edges([found], "gamma", 7)
    assert (
        len(at) == 8
        and np.allclose(np.diff(at), at[1] - at[0])
        and values.histogram(found, "gamma", at).counts.sum() == 2
    )


def test_a_network_without_batchnorm():
    with pytest.raises(UsageError, match=r"Sequential has no BatchNorm with γ and β"):
        values.affine(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)))
    assert statistics(nn.Linear(2, 2)) == {
        name: [] for name in ("gamma_mean", "gamma_std", "gamma_small", "beta_mean", "beta_std")
    }


def test_what_is_recorded_each_epoch():
    model, (train, test) = resnet(8, 4), digits()
    history = fastbn.fit(model, train, test, epochs=2, batch_size=24, progress=False)
    for which in ("gamma", "beta"):
        own = [(norm.weight if which == "gamma" else norm.bias).detach().double() for norm in norms(model)]
        for what, expected in (
            ("mean", [v.mean() for v in own]),
            ("std", [v.std(unbiased=False) for v in own]),
        ):
            assert history[-1]["norms"][f"{which}_{what}"] == pytest.approx(
                [float(v) for v in expected], rel=1e-3
            )
        assert values.course(history, f"{which}_mean").shape == (2, 9)
        mean, std = values.overall(history, values.affine(model), which)
        whole = torch.cat(own)
        assert (mean[-1], std[-1]) == pytest.approx(
            (float(whole.mean()), float(whole.std(unbiased=False))), rel=1e-3, abs=1e-4
        )
    assert history[0]["norms"] != history[1]["norms"]
    with pytest.raises(UsageError, match="earlier version"):
        values.course([{"epoch": 0}], "gamma_mean")
