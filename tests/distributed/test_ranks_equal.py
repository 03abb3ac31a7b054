"""K processes at the same global batch are one process: exactly so with --sync-bn, by each rank's own
statistics without."""

import functools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from ranks import together
from runs import digits, network

from bench.oracle.networks import flip_free
from fastbn.data.feed import Resident
from fastbn.engine import fuse
from fastbn.engine.context import recomputing
from fastbn.engine.recomputation import Recompute
from fastbn.trainable import freeze, trainable
from fastbn.training import fit as fit_module
from fastbn.training import loop
from fastbn.training.distributed.ranks import started
from fastbn.training.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = 50  # batches of 24, 24 and a ragged 2: of four ranks, two then have no image
FIGURES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


class Double(Resident):
    """The same images in float64."""

    def load(self, *inputs):
        x, labels = super().load(*inputs)
        return x.double(), labels

    def held_out(self, size, share=(0, 1)):
        return ((x.double(), labels) for x, labels in super().held_out(size, share))


def train(dtype=torch.float64, engine="auto", only="bn", recompute=None, **settings):
    """Return what one process, or each of torchrun's, ends with."""
    train, test = digits(IMAGES, 32)
    model = freeze(network().to(dtype), only)
    if dtype == torch.float32:
        flip_free(model)
    fuse(model, engine)
    kind = Double if dtype == torch.float64 else Resident

    def feed(images, device, what):
        """Return a feed of its own kind; a feed is one already."""
        return images if isinstance(images, Resident) else kind(images)

    with (
        mock.patch.object(fit_module, "feed", feed),
        # so that every rank has some
        mock.patch.object(loop, "evaluate", functools.partial(evaluate, batch_size=5)),
        recomputing(recompute),
        started(60.0) as ranks,
    ):
        if not ranks.first:  # whoever starts elsewhere is brought along
            with torch.no_grad():
                model.bn1.weight += 1.0
                model.conv1.weight += 1.0
        # which finds its ranks itself
        history = fit_module.fit(model, train, test, epochs=2, batch_size=24, progress=False, **settings)
    return model.state_dict(), [{name: line[name] for name in FIGURES} for line in history]


def error(found, expected):
    """Return the largest error over tensors, norm-wise."""
    return max(
        ((found[k].double() - t.double()).norm() / t.double().norm().clamp(min=0.1)).item()
        for k, t in expected.items()
    )


def assert_one_run(results, expected, tolerance):
    (state, history), (wanted, lines) = results[0], expected
    assert error(state, wanted) < tolerance
    for line, other in zip(history, lines, strict=True):
        assert line == pytest.approx(other, rel=tolerance, abs=tolerance)
    for others, told in results[1:]:
        assert told == history
        assert all(torch.equal(t, state[name]) for name, t in others.items()), "the ranks differ"


def test_two_ranks_with_synchronised_statistics_are_one_process(tmp_path):
    """float64: 1e-9. Every γ, β, frozen weight, running statistic; losses and accuracies."""
    results = together(2, tmp_path, train, sync_bn=True)
    assert_one_run(results, train(), 1e-9)
    without = train_apart(2)
    assert error(without[0], results[0][0]) > 1e-6  # and it is the statistics' doing


def train_apart(count):
    """Return what per-rank statistics mean, by plain PyTorch in one process: each part of a batch goes
    through the network by itself, the gradients are added by the parts' sizes, and each part's running
    statistics are averaged in the end."""
    images, _ = digits(IMAGES, 32)
    model, source = network(engine="stock").double().train(), Double(images)
    optimizer = torch.optim.SGD([p for _, p in trainable(model)], lr=0.1, momentum=0.9, weight_decay=1e-4)
    buffers = [{name: b.clone() for name, b in model.named_buffers()} for _ in range(count)]
    for epoch in range(2):
        source.begin(0, epoch)
        optimizer.param_groups[0]["lr"] = 0.1 if epoch < 1 else 0.01
        parts = [source.batches(24, 0, (rank, count)) for rank in range(count)]
        for shares in zip(*parts, strict=True):
            n = sum(len(indices) for (indices,) in shares)
            optimizer.zero_grad()
            for rank, (indices,) in enumerate(shares):
                model.load_state_dict(buffers[rank], strict=False)
                counts = len(indices) / n
                x, labels = source.load(
                    indices if counts else next(source.batches(24, 0, (rank, count)))[0][:1]
                )
                (F.cross_entropy(model(x), labels) * counts).backward()
                buffers[rank] = {name: b.clone() for name, b in model.named_buffers()}
            optimizer.step()
    mean = {name: sum(own[name] for own in buffers) / count for name in buffers[0]}
    return model.state_dict() | mean, None


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_without_them_each_rank_has_its_own(tmp_path, count):
    results = together(count, tmp_path, train)
    assert error(results[0][0], train_apart(count)[0]) < 1e-9
    assert_one_run(results, results[0], 1e-9)


KINDS = {
    "sgd": {},
    "adam": {"optimizer": "adam", "lr": 0.01, "schedule": "cosine"},
    "frozen": {"bn_stats": "frozen"},
    "output": {"only": "bn+output"},
    "recomputed": {"recompute": Recompute(0)},
    "native": {"dtype": torch.float32, "engine": "native"},
    "reference": {"dtype": torch.float32, "engine": "reference"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_four_ranks_with_synchronised_statistics_are_one_process(tmp_path, kind):
    """Two of them have no image of the ragged last batch. float32, without ReLUs that a rounding flips, is
    allowed ten layers' roundings in each of six steps, ten times over for BatchNorm of two images."""
    results = together(4, tmp_path, train, sync_bn=True, **KINDS[kind])
    assert_one_run(
        results,
        train(**KINDS[kind]),
        1e-9 if "dtype" not in KINDS[kind] else 600 * torch.finfo(torch.float32).eps,
    )
