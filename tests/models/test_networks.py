"""The networks beside the ResNets: their parameters counted, their forward against plain PyTorch in float64,
their variants, and what a checkpoint keeps of them."""

import pytest
import torch
import torch.nn.functional as F
from runs import checkpoint, digits, metrics, train
from torch import nn

import fastbn
from fastbn.errors import UsageError
from fastbn.models.families import resolve
from fastbn.models.network import Network, network
from fastbn.trainable import count, freeze
from fastbn.training.checkpoint import load, save

pytestmark = pytest.mark.usefixtures("one_thread")


def made(family, depth=None, **arguments):
    return network(resolve(depth, family=family, **arguments), "stock")


@pytest.mark.parametrize(
    "family, depth, arguments, bn, total",
    [
        ("vgg", 11, {}, 5_504, 9_231_114),
        ("vgg", 13, {}, 5_888, 9_416_010),
        ("vgg", 16, {}, 8_448, 14_728_266),
        ("vgg", 19, {}, 11_008, 20_040_522),
        ("wandb", None, {}, 4_000, 571_114),  # Keras counts its 4,000 running statistics too: 575,114
        ("mlp", None, {}, 3_584, 3_809_034),
        (
            "lstm",
            None,
            {"num_classes": 2, "vocabulary": 1_000},
            604,
            604 + 200 * 1_000 + 4 * 100 * (200 + 100 + 2) + 202,
        ),
        ("cifar", 14, {"norm": "group"}, 1_120, 175_258),
        ("cifar", 14, {"norm": "selu"}, 175_258 - 1_120, 175_258 - 1_120),  # no norm: everything trains
        # Keras's, of 10 classes
        ("imagenet", 50, {"conv_bias": True, "stride_on": "1x1"}, 53_120, 25_557_032 - 990 * 2_049 + 26_560),
    ],
)
def test_parameter_counts(family, depth, arguments, bn, total):
    with torch.device("meta"):
        assert count(made(family, depth, **arguments)) == (bn, total)


def test_torris_output_layer_trains_too():
    with torch.device("meta"):
        assert count(freeze(made("mlp"), "bn+output"))[0] == 3_584 + 2_570


def perturbed(model, training):
    """Return the model in float64, with statistics that tell which BatchNorm was used."""
    model = model.double().train(training)
    for i, (name, buffer) in enumerate(model.named_buffers()):
        if not name.endswith("tracked"):
            buffer.copy_(torch.linspace(0.5, 1.5, len(buffer)) + 0.01 * (i % 7))
    return model


class Plain:
    """The operations, from a state dict alone."""

    def __init__(self, model):
        self.state = {name: value.clone() for name, value in model.state_dict().items()}
        self.training, self.eps = model.training, model.spec.norm_eps

    def conv(self, x, name, stride=1):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def bn(self, x, name):
        mean, var = self.state[f"{name}.running_mean"].clone(), self.state[f"{name}.running_var"].clone()
        return F.batch_norm(
            x,
            mean,
            var,
            self.state[f"{name}.weight"],
            self.state[f"{name}.bias"],
            self.training,
            0.1,
            self.eps,
        )

    def linear(self, x, name):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])


def vgg(plain, x):
    for stage, blocks in enumerate((1, 1, 2, 2, 2), 1):
        x = F.max_pool2d(x, 2) if stage > 1 else x
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            x = plain.bn(plain.conv(x, f"{at}.conv"), f"{at}.bn").relu()
    return plain.linear(x.mean((2, 3)), "fc")


def wandb(plain, x):
    x = plain.bn(plain.conv(x, "conv1"), "bn1").relu()
    for group in (1, 2, 3):
        for block in (0, 1):
            at, stride = f"layer{group}.{block}", 2 if group > 1 and block == 0 else 1
            y = plain.bn(plain.conv(x, f"{at}.conv1"), f"{at}.bn1").relu()
            y = plain.bn(plain.conv(y, f"{at}.conv2", stride), f"{at}.bn2").relu()
            y = plain.bn(plain.conv(y, f"{at}.conv3"), f"{at}.bn3")
            x = (y + (plain.conv(x, f"{at}.projection", stride) if block == 0 else x)).relu()
    return plain.linear(plain.bn(x, "bn2").relu().mean((2, 3)), "fc")


def mlp(plain, x):
    x = x.flatten(1)
    for i in (1, 2, 3):
        x = plain.bn(plain.linear(x, f"fc{i}"), f"bn{i}").relu()
    return plain.linear(x, "fc")


def lstm(plain, x):
    """Sample by sample, each as long as it is."""
    words = F.embedding(x[:, 1:], plain.state["embedding.weight"])
    words = plain.bn(words.transpose(1, 2), "bn1").relu().transpose(1, 2)
    cell = nn.LSTM(words.shape[2], plain.state["lstm.weight_hh_l0"].shape[1], batch_first=True).double()
    cell.load_state_dict({name[5:]: value for name, value in plain.state.items() if name.startswith("lstm.")})
    last = torch.cat([cell(words[i : i + 1, : x[i, 0]])[1][0][0] for i in range(len(x))])
    return plain.bn(plain.linear(plain.bn(last, "bn2").relu(), "fc"), "bn3")


SENTENCES = torch.tensor([[3, 5, 6, 1, 0, 0], [1, 2, 0, 0, 0, 0], [5, 1, 2, 3, 4, 5], [2, 6, 6, 0, 0, 0]])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "oracle, family, depth, arguments, size",
    [
        (vgg, "vgg", 11, {"width": 3}, (33, 17)),  # odd and not square: the max-pools round down
        (wandb, "wandb", None, {"width": 3, "norm_eps": 1e-3}, (17, 23)),
        (mlp, "mlp", None, {"width": 20}, (32, 32)),
        (lstm, "lstm", None, {"width": 5, "vocabulary": 7, "embedding": 3, "num_classes": 2}, None),
    ],
)
def test_forward_is_the_study_s(oracle, family, depth, arguments, size, training):
    model = perturbed(made(family, depth, seed=1, **arguments), training)
    draws = torch.Generator().manual_seed(0)
    x = SENTENCES if size is None else torch.randn(5, 3, *size, dtype=torch.float64, generator=draws) + 2
    expected = oracle(Plain(model), x)
    torch.testing.assert_close(
        model(x), expected, rtol=1e-9, atol=1e-9 * float(expected.detach().abs().max())
    )


@pytest.mark.parametrize("norm", ["instance", "group", "selu"])
def test_norms_are_exchanged(norm):
    model = made("cifar", 8, width=6, norm=norm)
    modules = list(model.modules())
    expected = {"instance": nn.InstanceNorm2d, "group": nn.GroupNorm, "selu": nn.Identity}[norm]
    assert any(isinstance(module, expected) for module in modules) and not any(
        isinstance(module, nn.BatchNorm2d) for module in modules
    )
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))  # no statistics over the batch
    if norm == "group":
        assert model.bn1.num_groups == 2  # as many of 8 as divide 6 channels
    else:
        assert {str(p.requires_grad) for p in model.fc.parameters()} == {str(norm == "selu")}


def test_group_norm_behind_a_frozen_convolution():
    """Channels-last and γ and β alone: torch's own backward would crash the process here. Its gradients
    are those in float64."""
    model = made("cifar", 8, width=8, norm="group")
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    weights = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    (model(x) * weights).sum().backward()
    oracle = made("cifar", 8, width=8, norm="group").double()
    (oracle(x.double().contiguous()) * weights.double()).sum().backward()
    for name in ("bn1.weight", "bn1.bias", "layer3.0.bn2.weight"):
        found, expected = model.get_parameter(name).grad, oracle.get_parameter(name).grad
        # ReLUs may flip
        torch.testing.assert_close(
            found, expected.float(), rtol=5e-2, atol=5e-2 * float(expected.abs().max())
        )
    assert isinstance(model.bn1, nn.GroupNorm) and model.conv1.weight.grad is None
    assert fastbn.explain(fastbn.fuse(model, "reference")).graph.regions == ()


def test_the_engine_takes_vgg_and_the_bottleneck_net():
    for family, depth in (("vgg", 11), ("wandb", None)):
        model = network(resolve(depth, width=4, family=family), "reference")
        assert sum(len(region.convs) for region in fastbn.explain(model).graph.regions) == (
            8 if family == "vgg" else 22
        )
        stock = network(resolve(depth, width=4, family=family), "stock")
        x = torch.randn(4, 3, 32, 32)
        torch.testing.assert_close(model(x), stock(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "family, depth, arguments",
    [
        ("vgg", 11, {"width": 4}),
        ("wandb", None, {"width": 4, "norm_eps": 1e-3, "norm_momentum": 0.01}),
        ("mlp", None, {"width": 8}),
        ("cifar", 8, {"width": 4, "norm": "instance"}),
        (
            "imagenet",
            50,
            {"width": 2, "conv_bias": True, "stride_on": "1x1", "weight_init": "glorot_uniform"},
        ),
    ],
)
def test_round_trip(tmp_path, family, depth, arguments):
    model = made(family, depth, seed=2, **arguments)
    fastbn.fit(model, digits()[0], epochs=1, batch_size=32, progress=False)
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.spec == model.spec and type(again) is type(model) and isinstance(again, Network)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * count(model)[1] or family == "imagenet"


def test_a_run_by_family_and_one_that_starts_from_it(tmp_path, capfd):
    """BatchNorm first, then everything: the second run begins with what the first one ended with."""
    arguments = [
        "--family",
        "wandb",
        "--depth",
        "20",
        "--norm-eps",
        "1e-3",
        "--augment",
        "crop+brightness",
        "--pixels",
        "unit",
    ]
    assert train(tmp_path / "bn", *arguments, epochs=1) == 0
    assert checkpoint(tmp_path / "bn")[1]["model"]["family"] == "wandb"
    assert "bottleneck ResNet-20" in capfd.readouterr().out
    assert (
        train(
            tmp_path / "all",
            *arguments,
            "--weights",
            str(tmp_path / "bn"),
            "--train",
            "all",
            "--lr",
            "1e-30",
            epochs=1,
        )
        == 0
    )
    first, second = load(tmp_path / "bn").state_dict(), load(tmp_path / "all").state_dict()
    for name, value in first.items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(value, second[name], msg=name)
    assert train(tmp_path / "other", "--weights", str(tmp_path / "bn"), epochs=1) == 2
    assert "does not fit the model" in capfd.readouterr().err


def test_none_is_measured(tmp_path, capfd):
    """Nothing trains: the statistics of one pass, and the test; done again from anywhere."""
    assert train(tmp_path / "run", "--train", "none") == 0
    (line,) = metrics(tmp_path / "run")
    assert 0 <= line["test_accuracy"] <= 1 and load(tmp_path / "run").bn1.num_batches_tracked == 3
    assert "0 of 5,214 parameters trained" in capfd.readouterr().out
    fresh = made("cifar", 8, width=4)
    assert torch.equal(load(tmp_path / "run").fc.weight, fresh.fc.weight)
    assert train(tmp_path / "run", "--train", "none", "--resume") == 0
    assert metrics(tmp_path / "run")[0]["test_loss"] == line["test_loss"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"family": "vgg"}, "a vgg needs a depth: one of 11, 13, 16, 19"),
        ({"family": "vgg", "depth": 15}, "one of 11, 13, 16, 19 for family='vgg', got 15; nearest: 16"),
        ({"family": "mlp", "depth": 5}, "one of 4 for family='mlp', got 5"),
        ({}, "a ResNet needs a depth"),
        ({"family": "lstm", "norm": "group"}, "lstm has norm batch alone, got 'group'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UsageError, match=message):
        resolve(**{"depth": None, **arguments})
