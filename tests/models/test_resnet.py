"""FastBNOnlyResNet: the architecture, counted and run against one written from the paper, and what
ordinary use expects of it."""

import copy
import dataclasses
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastbn.errors import UsageError
from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.trainable import count, trainable

COUNTS = [  # depth, width, classes, family; total, BatchNorm's
    (14, None, 10, None, 175_258, 1_120),
    (20, None, 10, None, 272_474, 1_568),
    (32, None, 10, None, 466_906, 2_464),
    (56, None, 10, None, 855_770, 4_256),
    (110, None, 10, None, 1_730_714, 8_288),
    (218, None, 10, None, 3_480_602, 16_352),
    (434, None, 10, None, 6_980_378, 32_480),
    (866, None, 10, None, 13_979_930, 64_736),
    (14, 512, 10, None, 177_279_498, 35_840),
    (18, None, 1000, None, 11_689_512, 9_600),
    (34, None, 1000, None, 21_797_672, 17_024),
    (50, None, 1000, "imagenet", 25_557_032, 53_120),
    (101, None, 1000, None, 44_549_160, 105_344),
    (152, None, 1000, "imagenet", 60_192_808, 151_424),
    (200, None, 1000, "imagenet", 64_673_832, 176_000),
]


@pytest.mark.parametrize("depth, width, classes, family, total, bn", COUNTS)
def test_parameter_counts(depth, width, classes, family, total, bn):
    with torch.device("meta"):
        model = FastBNOnlyResNet(depth, classes, width, family, engine="stock")
    assert count(model) == (bn, total)
    layers = [
        m
        for name, m in model.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear)) and "downsample" not in name
    ]
    assert len(layers) == depth


def oracle(state, x, blocks, training, imagenet):
    """Return the network from its state dict alone: strides, paddings and the order of operations as the
    papers and torchvision have them."""

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)

    def bn(x, name):
        mean, var = state[f"{name}.running_mean"].clone(), state[f"{name}.running_var"].clone()
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], training, 0.1, 1e-5)

    x = bn(conv(x, "conv1", 2 if imagenet else 1), "bn1").relu()
    if imagenet:
        x = F.max_pool2d(x, 3, 2, 1)
    for i, n in enumerate(blocks, 1):
        for j in range(n):
            at, stride = f"layer{i}.{j}", 2 if i > 1 and j == 0 else 1
            if f"{at}.conv3.weight" in state:
                y = bn(conv(x, f"{at}.conv1"), f"{at}.bn1").relu()
                y = bn(conv(y, f"{at}.conv2", stride), f"{at}.bn2").relu()
                y = bn(conv(y, f"{at}.conv3"), f"{at}.bn3")
            else:
                y = bn(conv(x, f"{at}.conv1", stride), f"{at}.bn1").relu()
                y = bn(conv(y, f"{at}.conv2"), f"{at}.bn2")
            if f"{at}.downsample.0.weight" in state:
                x = bn(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
            x = (x + y).relu()
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "depth, family, width, blocks, size",
    [
        (14, None, 3, (2, 2, 2), (32, 32)),  # 3: channels that no vector width divides
        (20, None, 4, (3, 3, 3), (17, 23)),  # odd and not square: every stride-2 layer rounds up
        (50, "cifar", 2, (8, 8, 8), (1, 1)),  # one pixel a stage
        (18, None, 4, (2, 2, 2, 2), (32, 32)),  # CIFAR's size ends at one pixel
        (34, None, 4, (3, 4, 6, 3), (65, 47)),
        (50, "imagenet", 4, (3, 4, 6, 3), (63, 33)),  # stride on the 3×3
    ],
)
def test_forward_is_the_papers(depth, family, width, blocks, size, training):
    model = FastBNOnlyResNet(depth, 7, width, family, seed=1, engine="stock").double().train(training)
    for i, (name, buffer) in enumerate(model.named_buffers()):  # statistics that say which BN was used
        if not name.endswith("tracked"):
            buffer.copy_(torch.linspace(0.5, 1.5, len(buffer)) + 0.01 * (i % 7))
    x = torch.randn(5, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2
    expected = oracle(copy.deepcopy(model.state_dict()), x, blocks, training, model.spec.family == "imagenet")
    found = model(x)
    assert found.shape == (5, 7)
    # 50 layers of float64's 1e-16
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_torchvisions_names():
    with torch.device("meta"):
        keys = {
            depth: list(FastBNOnlyResNet(depth, family="imagenet", engine="stock").state_dict())
            for depth in (18, 50)
        }
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    stem = ["conv1.weight", *(f"bn1.{kind}" for kind in norm)]
    assert keys[18][:6] == keys[50][:6] == stem
    assert keys[18][6:9] == ["layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer1.0.bn1.bias"]
    first = keys[18].index("layer2.0.downsample.0.weight")
    assert keys[18][first - 6] == "layer2.0.conv2.weight"
    assert keys[18][first + 1 : first + 6] == [f"layer2.0.downsample.1.{kind}" for kind in norm]
    assert keys[18][-2:] == keys[50][-2:] == ["fc.weight", "fc.bias"]
    assert (len(keys[18]), len(keys[50])) == (122, 320)  # as torchvision's resnet18 and resnet50
    assert {"layer1.0.downsample.0.weight", "layer4.2.bn3.running_var", "layer3.5.conv3.weight"} <= set(
        keys[50]
    )
    assert not any(key.startswith("layer1.0.downsample") for key in keys[18])


def test_the_cifar_family_projects_at_the_two_stage_changes_alone():
    model = FastBNOnlyResNet(20, engine="stock")
    projections = {
        name: module
        for name, module in model.named_modules()
        if "downsample" in name and isinstance(module, nn.Conv2d)
    }
    assert set(projections) == {"layer2.0.downsample.0", "layer3.0.downsample.0"}
    assert all(
        conv.kernel_size == (1, 1) and conv.stride == (2, 2) and conv.bias is None
        for conv in projections.values()
    )


def test_only_batchnorm_requires_grad():
    model = FastBNOnlyResNet(14, width=4)
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {name.rpartition(".")[0] for name, _ in trainable(model)} == norms and len(
        trainable(model)
    ) == 2 * len(norms)


def test_construction_leaves_every_global_generator_alone():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for weight_init in ("kaiming_normal", "orthogonal"):
        FastBNOnlyResNet(14, width=4, weight_init=weight_init)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])


def test_default_dtype_and_device_are_followed():
    torch.set_default_dtype(torch.float64)
    try:
        double = FastBNOnlyResNet(14, width=4, engine="stock")
    finally:
        torch.set_default_dtype(torch.float32)
    single = FastBNOnlyResNet(14, width=4, engine="stock")
    assert double.conv1.weight.dtype == torch.float64 and single.conv1.weight.dtype == torch.float32
    assert torch.equal(double.conv1.weight.float(), single.conv1.weight)
    # drawn in float64, rounded once
    assert not torch.equal(double.conv1.weight, single.conv1.weight.double())
    with torch.device("meta"):
        assert all(tensor.is_meta for tensor in FastBNOnlyResNet(14, engine="stock").state_dict().values())


def test_fx_traces_it():
    model = FastBNOnlyResNet(20, width=4, engine="stock").eval()
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    assert sum(node.op == "call_module" and "bn" in str(node.target) for node in traced.graph.nodes) == 19


def test_repr_is_a_screen_at_any_depth():
    with torch.device("meta"):
        text = repr(FastBNOnlyResNet(866, engine="stock"))
        bottleneck = repr(FastBNOnlyResNet(50, family="imagenet", engine="stock"))
    assert len(text.splitlines()) == 7 and text.startswith(
        "FastBNOnlyResNet(depth=866, num_classes=10, width=16, family='cifar', seed=0"
    )
    assert "layer1: 144 × BasicBlock 16→16\n" in text and "layer3: 144 × BasicBlock 32→64, stride 2\n" in text
    assert "trainable: 64,736 of 13,979,930 parameters" in text
    assert (
        "layer1: 3 × Bottleneck 64→256\n" in bottleneck
        and "layer4: 3 × Bottleneck 1024→2048, stride 2\n" in bottleneck
    )


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_copy_is_independent(copied):
    model = FastBNOnlyResNet(14, width=4, engine="stock").eval()
    other = copied(model)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = model(x)
    assert torch.equal(before, other(x)) and repr(other) == repr(model) and other.spec == model.spec
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(before, model(x)) and not torch.equal(before, other(x))


def test_spec_is_resolved():
    spec = FastBNOnlyResNet(14, width=4, engine="stock", gamma_init="ones").spec
    expected = {"depth": 14, "num_classes": 10, "width": 4, "family": "cifar", "seed": 0}
    assert spec.said() == {
        **expected,
        "gamma_init": "ones",
        "beta_init": "zeros",
        "weight_init": "kaiming_normal",
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.depth = 20
    model = FastBNOnlyResNet(np.int64(14), width=np.int32(4), seed=np.uint8(3), engine="stock")
    assert (model.spec.seed, model.weights_file, model.weights_sha256) == (3, None, None) and type(
        model.spec.depth
    ) is int


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"depth": 100},
            r"depth must be 6n\+2 \(14, 20, 56, 110, 866, …\) or one of 18, 34, 50, 101, 152, "
            r"200, got 100; nearest: 98",
        ),
        ({"depth": 2}, "got 2; nearest: 8"),  # n = 0: no block
        ({"depth": 50}, 'is both .*family="cifar" or family="imagenet"'),
        ({"depth": 152}, "is both"),
        ({"depth": 200}, "is both"),
        ({"depth": 20, "family": "imagenet"}, "one of 18, .* for family='imagenet', got 20; nearest: 18"),
        ({"depth": 18, "family": "cifar"}, r"6n\+2 .* for family='cifar', got 18; nearest: 20"),
        (
            {"depth": 20, "family": "image"},
            "family must be one of cifar, imagenet, .*, got 'image'; nearest: imagenet",
        ),
        ({"depth": "20"}, "depth must be an integer"),
        ({"depth": 20.0}, "depth must be an integer"),
        ({"depth": True}, "depth must be an integer"),
        ({"depth": 14, "width": 0}, "width must be an integer of at least 1, got 0"),
        ({"depth": 14, "num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ({"depth": 14, "seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"depth": 14, "seed": None}, "seed must be an integer of at least 0, got None"),
        (
            {"depth": 14, "gamma_init": "unifrom"},
            "gamma_init must be one of uniform, .*, he_normal, got 'unifrom'; nearest: uniform",
        ),
        (
            {"depth": 14, "beta_init": "zero"},
            "beta_init must be one of zeros, ones, got 'zero'; nearest: zeros",
        ),
        ({"depth": 16, "family": "vgg"}, "of the family cifar or imagenet, got 'vgg'"),
        ({"depth": 14, "norm": "layer"}, "norm must be one of batch, instance, group, selu, got 'layer'"),
        ({"depth": 14, "norm_eps": 0}, "norm_eps must be a number above 0"),
        ({"depth": 50, "family": "imagenet", "stride_on": "2x2"}, "stride_on must be one of 3x3, 1x1"),
        ({"depth": 14, "weight_init": "he"}, "weight_init must be one of kaiming_normal, "),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UsageError, match=message):
        FastBNOnlyResNet(**arguments)


@pytest.mark.parametrize("depth", [50, 152, 200])
def test_a_depth_of_both_families_is_either(depth):
    with torch.device("meta"):
        cifar, imagenet = (
            FastBNOnlyResNet(depth, family=family, engine="stock") for family in ("cifar", "imagenet")
        )
    assert (cifar.spec.width, imagenet.spec.width) == (16, 64)
    assert not hasattr(cifar, "layer4") and hasattr(imagenet, "layer4")
