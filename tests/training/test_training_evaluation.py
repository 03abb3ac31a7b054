"""What an evaluation counts, and how the ranks' parts become one."""

from __future__ import annotations

import pytest
import torch

from fastbn import FastBNOnlyResNet, fit
from fastbn.data.feed import feed
from fastbn.data.images import Images
from fastbn.training.distributed.exchange import Exchange
from fastbn.training.evaluation import evaluate
from fastbn.training.totals import Totals

CPU = torch.device("cpu")


def images(n: int, classes: int) -> Images:
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (n, 8, 8, 3), dtype=torch.uint8, generator=draw)
    return Images(x, torch.randint(0, classes, (n,), generator=draw), classes=tuple(map(str, range(classes))))


def test_the_five_likeliest_of_a_hundred():
    model, samples = FastBNOnlyResNet(8, width=4, num_classes=100), images(70, 100)
    found = evaluate(model, feed(samples, CPU), batch_size=32).mean("test")
    model.eval()
    near, right = 0, 0
    with torch.no_grad():
        for x, labels in feed(samples, CPU).held_out(70, (0, 1)):
            order = model(x).argsort(1, descending=True)
            near += int((order[:, :5] == labels[:, None]).any(1).sum())
            right += int((order[:, 0] == labels).sum())
    assert found["test_top5_accuracy"] == near / 70 and found["test_accuracy"] == right / 70
    assert near > right


def test_of_ten_classes_they_are_not_counted():
    assert "test_top5_accuracy" not in evaluate(FastBNOnlyResNet(8, width=4), feed(images(9, 10), CPU)).mean(
        "test"
    )


def test_fit_reports_them_by_epoch():
    (line,) = fit(
        FastBNOnlyResNet(8, width=4, num_classes=100),
        images(20, 100),
        images(12, 100),
        epochs=1,
        batch_size=10,
        progress=False,
    )
    assert line["test_accuracy"] <= line["test_top5_accuracy"] <= 1


class Two:
    """Two ranks, of which this is one; the other's message is known."""

    count, timeout = 2, 1.0

    def __init__(self, other: Totals):
        own: list[torch.Tensor] = []
        self.sum = lambda message: own.append(message) or message
        Exchange(self, CPU).evaluated(other, None)
        self.sum = lambda message: message + own[0]


def totals(loss: float, correct: int, n: int, top5: int | None) -> Totals:
    near = None if top5 is None else torch.tensor(top5)
    return Totals(torch.tensor(loss, dtype=torch.float64), torch.tensor(correct), n, torch.tensor(True), near)


@pytest.mark.parametrize(
    "other, expected",
    [((2.0, 3, 4, 4), (5.0, 5, 11, 9)), ((0.0, 0, 0, None), (3.0, 2, 7, 5))],
    ids=["both", "one"],
)
def test_the_parts_of_two_ranks(other, expected):
    """One may have had no batch, and so no idea that there are a hundred classes."""
    for first, second in (((3.0, 2, 7, 5), other), (other, (3.0, 2, 7, 5))):
        own = totals(*first)
        assert Exchange(Two(totals(*second)), CPU).evaluated(own, None) is None
        assert (own.loss.item(), own.correct.item(), own.images, own.top5.item()) == expected


def test_two_ranks_and_few_classes():
    own = totals(3.0, 2, 7, None)
    Exchange(Two(totals(2.0, 3, 4, None)), CPU).evaluated(own, None)
    assert own.top5 is None and own.images == 11
