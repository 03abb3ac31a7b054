"""The resident feed: the epoch's batches in the drawn order, shared among ranks, drawn anew in place."""

from __future__ import annotations

import pytest
import torch

from fastbn.data.augment import batch, draw_epoch
from fastbn.data.feed import Resident, feed
from fastbn.data.images import Images
from fastbn.errors import UsageError

N = 23  # a ragged last batch of 3 at 5


def make() -> Resident:
    draw = torch.Generator().manual_seed(3)
    return Resident(
        Images(
            torch.randint(0, 256, (N, 7, 9, 3), dtype=torch.uint8, generator=draw), torch.arange(N) % 4, pad=2
        )
    )


def test_batches_are_the_epochs_order_and_load_augments_by_its_draws():
    source, drawn = make(), draw_epoch(N, 5, 1, 2, True)
    source.begin(5, 1)
    for (indices,), expected in zip(source.batches(5), drawn.order.split(5), strict=True):
        assert torch.equal(indices, expected)
        x, labels = source.load(indices)
        assert torch.equal(x, batch(source.images, expected, drawn))
        assert torch.equal(labels, source.images.labels[expected])
    assert [inputs[0].tolist() for inputs in source.batches(5, 3)] == [
        part.tolist() for part in drawn.order.split(5)[3:]
    ]


@pytest.mark.parametrize("ranks", [2, 4])  # 4 divides no batch of 5 or 3: the last ranks get one less
def test_the_ranks_shares_make_up_the_batch(ranks):
    source = make()
    source.begin(0, 0)
    shares = [[inputs[0] for inputs in source.batches(5, 1, (rank, ranks))] for rank in range(ranks)]
    for (whole,), *parts in zip(source.batches(5, 1), *shares, strict=True):
        assert torch.equal(torch.cat(parts), whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_another_epoch_is_drawn_in_the_same_memory():
    source = make()
    source.begin(0, 0)
    (first,) = next(source.batches(N))
    before, (x, _) = first.tolist(), source.load(torch.arange(N))
    source.begin(0, 1)
    assert first.tolist() == draw_epoch(N, 0, 1, 2, True).order.tolist() != before
    assert not torch.equal(source.load(torch.arange(N))[0], x)


def test_held_out_samples_come_in_order_as_they_are():
    source = make()
    x, labels = (torch.cat(parts) for parts in zip(*source.held_out(5), strict=True))
    assert torch.equal(x, batch(source.images, torch.arange(N), None))
    assert torch.equal(labels, source.images.labels)


def test_what_is_no_image_set_is_refused():
    with pytest.raises(UsageError, match=r"test must be fastbn\.Images.*got list"):
        feed([1, 2], torch.device("cpu"), "test")
