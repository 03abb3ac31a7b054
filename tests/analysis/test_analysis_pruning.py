"""fastbn.prune: channels of |γ| < t are zeroed, then gone, and the outputs are those of the zeroed
network, in every case of a border."""

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import resnet
from torch import nn

import fastbn
from bench.oracle.networks import images, norms, scattered
from bench.oracle.stock import error
from fastbn.analysis.pruning import masked, prune
from fastbn.analysis.thresholds import arrays, by_threshold, flops
from fastbn.data.digits import load_digits
from fastbn.errors import UsageError
from fastbn.trainable import count

# depth, width, family, image side (odd: the strided convolutions' borders differ), in both families and kinds
# of block
NETWORKS = [(14, 6, None, 13), (18, 5, None, 37), (50, 4, "imagenet", 37)]


def dying(depth, width, family, dtype=torch.float64):
    """Return the model with γ of both signs about 0, β too: a channel that goes leaves 0 or a constant above
    it. Channels 1 and 4 of all that feed the first stream are 0, so the stream itself gets narrower."""
    model = resnet(depth, width, family).to(dtype).eval()
    with torch.no_grad():
        for norm in norms(model):
            if norm.num_features in (width, 4 * width):
                norm.weight[1] = norm.weight[3] = 0.0
    return model


def by_hand(model, threshold):
    """Return the oracle: γ under the threshold set to 0, in a plain copy."""
    found = fastbn.fuse(copy.deepcopy(model), "stock")
    with torch.no_grad():
        for norm in norms(found):
            for i, value in enumerate(norm.weight.tolist()):
                if abs(value) < threshold:
                    norm.weight[i] = 0.0
    return found


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.0, 1.45, 9.0])
@pytest.mark.parametrize("depth, width, family, side", NETWORKS)
def test_outputs_are_those_of_the_zeroed_network(depth, width, family, side, threshold, training):
    model, x = dying(depth, width, family).train(training), images(3, side, side + 2)
    expected, smaller = by_hand(model, threshold), prune(model, threshold)
    assert smaller.training == training and not isinstance(smaller, fastbn.FastBNOnlyResNet)
    with torch.no_grad():
        assert error(smaller(x), expected(x)) < 1e-10
    assert count(smaller)[1] < count(model)[1]


@pytest.mark.parametrize("depth, width, family, side", NETWORKS)
def test_in_float32_within_1e_5(depth, width, family, side):
    model, x = dying(depth, width, family, torch.float32), images(2, side, side, dtype=torch.float32)
    with torch.no_grad():
        assert error(prune(model, 0.5)(x), by_hand(model, 0.5)(x)) < 1e-5


def test_variants_of_a_resnet():
    x = images(3, 37, 39)
    for options in ({"conv_bias": True}, {"stride_on": "1x1"}, {"norm_eps": 0.1, "norm_momentum": 0.3}):
        model = resnet(50, 4, "imagenet", **options).double().eval()
        with torch.no_grad():
            assert error(prune(model, 0.5)(x), by_hand(model, 0.5)(x)) < 1e-10, options
            assert error(prune(model.train(), 0.5)(x), by_hand(model, 0.5)(x)) < 1e-10, options
    with pytest.raises(UsageError, match="no BatchNorm2d"):
        prune(fastbn.FastBNOnlyResNet(8, norm="group"))


def test_a_constant_before_a_padded_convolution_leaves_one_channel_and_a_zero_none():
    model = resnet(8, 6).double().eval()
    block = model.layer1[0]
    with torch.no_grad():
        block.bn1.weight[:4] = 0.0
        block.bn1.bias[:4] = torch.tensor([-1.0, -0.5, 0.0, -2.0])
    inner = prune(model, 0.0).stages[0][0].sources[0].conv1
    assert inner.out_channels == 2  # relu(β) is 0 for all four
    with torch.no_grad():
        block.bn1.bias[:4] = torch.tensor([1.0, 0.5, -1.0, 2.0])
    smaller = prune(model, 0.0)
    assert smaller.stages[0][0].sources[0].conv1.out_channels == 3  # and one of ones
    x = images(2, 9, 9)
    with torch.no_grad():
        assert error(smaller(x), model(x)) < 1e-12
        # the border is what a plain bias would get wrong
        naive = copy.deepcopy(smaller)
        naive.stages[0][0].sources[0].conv2.padding_mode = "replicate"
        naive.stages[0][0].sources[0].conv2._reversed_padding_repeated_twice = [1, 1, 1, 1]
        assert error(naive(x), model(x)) > 1e-6


def test_before_an_unpadded_convolution_every_constant_channel_goes():
    model = resnet(50, 4, "imagenet").double().eval()
    block = model.layer2[1]
    with torch.no_grad():
        block.bn2.weight[:3], block.bn2.bias[:3] = 0.0, 1.0
    chain = prune(model, 0.0).stages[1][1].sources[0]
    assert chain.conv2.out_channels == block.conv2.out_channels - 3 == chain.conv3.in_channels


def test_the_stream_narrows_where_all_that_feeds_it_is_lost():
    model = dying(14, 6, None)
    smaller = prune(model, 0.0)
    assert smaller.stem.channels in (4, 5)  # 6 − 2, and one of ones if a constant is left
    model.layer1[1].bn2.weight.data[1] = 0.5
    assert prune(model, 0.0).stem.channels == smaller.stem.channels + 1


def test_what_trained_still_trains_and_the_model_is_left_alone():
    model = resnet(8, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smaller = prune(model, 0.8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    x = images(4, 9, 9, dtype=torch.float32)
    F.cross_entropy(smaller(x), torch.arange(4)).backward()
    for module in smaller.modules():
        trains = isinstance(module, nn.BatchNorm2d)
        assert all((p.grad is not None) == trains for p in module.parameters(recurse=False))
    assert repr(smaller).startswith("PrunedResNet")
    assert error(copy.deepcopy(smaller).eval()(x), smaller.eval()(x)) == 0


def test_masked_takes_any_network():
    model = scattered(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)))
    found = masked(model, 0.5)
    expected = [value if abs(value) >= 0.5 else 0.0 for value in model[1].weight.tolist()]
    assert found[1].weight.tolist() == expected and found is not model


def test_wrong_arguments():
    for threshold in (-0.1, float("nan")):
        with pytest.raises(UsageError, match=r"threshold .* at least 0"):
            prune(resnet(8), threshold)
    with pytest.raises(TypeError, match=r"FastBNOnlyResNet.*Sequential"):
        prune(nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(UsageError, match="no BatchNorm2d"):
        masked(nn.Sequential(nn.Conv2d(3, 3, 1)), 0.1)


def test_the_table_by_threshold():
    model, test = resnet(8, 4), load_digits()[1].limit(40)
    cuts = by_threshold(model, test, (0.3, 0.9), batch_size=8, rounds=1)
    whole, *cut = cuts
    gamma = [value for norm in norms(model) for value in norm.weight.tolist()]
    x = (
        torch.stack([torch.from_numpy(image.numpy()) for image in test.images]).permute(0, 3, 1, 2).float()
        / 255
    )
    x = (x - torch.tensor(test.mean).view(3, 1, 1)) / torch.tensor(test.std).view(3, 1, 1)
    for one, threshold in zip(cut, (0.3, 0.9), strict=True):
        plain = by_hand(model, threshold).eval()
        with torch.no_grad():
            accuracy = (
                sum(int(k) == int(label) for k, label in zip(plain(x).argmax(1), test.labels, strict=True))
                / 40
            )
        assert one.accuracy == accuracy
        assert one.zeroed == pytest.approx(sum(abs(g) < threshold for g in gamma) / len(gamma))
        assert (
            one.parameters == sum(p.numel() for p in prune(model, threshold).parameters()) < whole.parameters
        )
        assert 0 < one.flops < whole.flops and one.seconds > 0
        assert one.speed_up == pytest.approx(whole.seconds / one.seconds)
    assert (whole.threshold, whole.zeroed, whole.speed_up, whole.parameters) == (None, 0.0, 1.0, 5214)
    table = arrays(cuts)
    assert table["threshold"].tolist() == [0.0, 0.3, 0.9] and table["flops"].tolist() == [
        one.flops for one in cuts
    ]


def test_flops_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7)
    )
    # 5×5 places, 27 taps; fc
    assert flops(model, torch.zeros(2, 3, 9, 9)) == 2 * (2 * 5 * 5 * 5 * 3 * 9 + 2 * 5 * 7)
