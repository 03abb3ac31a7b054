"""A stream's batches: the same whatever reads them, in parts or resumed."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from data_stream import CLASSES, folders, shard, shards
from stream_batches import SIZE, collected, same

from fastbn.data.feed import feed
from fastbn.data.imagenet import read_imagenet, worker
from fastbn.data.imagenet.decode import decode
from fastbn.data.imagenet.order import draw
from fastbn.errors import MachineError, UsageError

N = 30  # a ragged last batch of 6


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=[folders, shards], ids=["folders", "shards"])
def root(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def train(root):
    return read_imagenet(root, SIZE, workers=0)[0]


def test_batches_are_what_training_takes(train):
    batches = collected(train)
    assert len(train) == N and [len(labels) for _, labels in batches] == [8, 8, 8, 6]
    for x, labels in batches:
        assert (
            x.shape == (len(labels), 3, SIZE, SIZE)
            and x.dtype == torch.float32
            and labels.dtype == torch.int64
        )
        assert x.is_contiguous(memory_format=torch.channels_last) and torch.isfinite(x).all()
    labels = torch.cat([labels for _, labels in batches])
    assert labels.bincount().tolist() == [10, 10, 10]  # each sample once
    # black and white, normalised
    assert min(x.min() for x, _ in batches) > -2.2 and max(x.max() for x, _ in batches) < 2.7


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_reads_the_same(root, train, workers):
    other, test = read_imagenet(root, SIZE, workers=workers)
    for epoch in (0, 1):
        same(collected(other, epoch=epoch), collected(train, epoch=epoch))
    same(list(test.held_out(4)), list(read_imagenet(root, SIZE, workers=0)[1].held_out(4)))


def test_epochs_and_seeds_differ(train):
    train.begin(3, 0)
    first = next(train.batches(N))
    for seed, epoch in ((3, 1), (4, 0)):
        train.begin(seed, epoch)
        assert not torch.equal(next(train.batches(N))[1], first[1])
    train.begin(3, 0)
    assert torch.equal(next(train.batches(N))[0], first[0])


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_resuming_gives_the_tail(train, first):
    same(collected(train, first=first), collected(train)[first:])


def test_what_was_read_before_is_not_decoded_again(train, monkeypatch):
    seen = []

    def noted(content, sample, *more):
        seen.append(sample)
        return decode(content, sample, *more)

    monkeypatch.setattr(worker, "decode", noted)
    collected(train, first=3)
    assert len(seen) == 6


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_ranks_shares_make_up_the_batch(train, ranks):
    """They do so for the last batch of 6 among 4 too."""
    shares = [collected(train, first=1, share=(rank, ranks)) for rank in range(ranks)]
    for (x, labels), *parts in zip(collected(train, first=1), *shares, strict=True):
        assert torch.equal(torch.cat([part for part, _ in parts]), x) and torch.equal(
            torch.cat([part for _, part in parts]), labels
        )
        assert max(len(part) for _, part in parts) - min(len(part) for _, part in parts) <= 1


def test_ranks_have_as_many_batches_each(train):
    """The last batch of 6 has nothing for ranks 6 and 7, and they have it all the same."""
    assert [[len(labels) for _, labels in collected(train, share=(rank, 8))] for rank in (0, 7)] == [
        [1, 1, 1, 1],
        [1, 1, 1, 0],
    ]


def test_a_samples_crop_does_not_depend_on_the_batch(train):
    """It does not depend on the limit either: it is found again in another batch of another size, by its
    pixels."""
    some, alone = collected(train, 5), collected(train.limit(9), 2)
    whole = {row.numpy().tobytes() for x, _ in some for row in x}
    assert len(whole) == N and len(alone) == 5
    assert all(row.numpy().tobytes() in whole for x, _ in alone for row in x)


def test_both_layouts_are_the_same_samples(tmp_path):
    """Those of the shards lie in the order of their numbers, those of the folders by class."""
    streams = [make(tmp_path / make.__name__) for make in (folders, shards)]
    pictures = []
    for where in streams:
        _, test = read_imagenet(where, SIZE, workers=0)
        rows = [pair for batch in test.held_out(4) for pair in zip(*batch, strict=True)]
        pictures.append({(x.numpy().tobytes(), int(label)) for x, label in rows})
    assert pictures[0] == pictures[1] and len(pictures[0]) == 11


def test_evaluation_is_in_order_and_without_draws(root):
    _, test = read_imagenet(root, SIZE, workers=0)
    labels = torch.cat([labels for _, labels in test.held_out(4)])
    assert labels.tolist() == (test.source.labels.tolist()) and len(test) == 11
    same(list(test.held_out(4)), list(test.held_out(4)))
    assert [len(labels) for _, labels in test.held_out(4)] == [4, 4, 3]
    for rank in range(2):
        same(list(test.held_out(4, (rank, 2))), list(test.held_out(4))[rank::2])
    x, _ = next(test.limit(5).held_out(9))
    assert len(x) == 5 and torch.equal(next(test.limit(5).held_out(9))[0], x)


def test_limits_are_nested_and_splits_part_the_set(train):
    five, nine = train.limit(5), train.limit(9)
    assert (
        set(five.indices) < set(nine.indices)
        and len(nine) == 9
        and list(nine.indices) == sorted(nine.indices)
    )
    assert train.limit(None) is train and train.limit(N) is train
    assert list(five.indices) != list(range(5))
    rest, held = train.split(6, seed=3)
    assert sorted([*rest.indices, *held.indices]) == list(range(N)) and len(held) == 6
    assert list(held.indices) != list(train.split(6, seed=4)[1].indices)
    with pytest.raises(UsageError, match="leaves nothing"):
        train.limit(0)
    for n in (0, N):
        with pytest.raises(UsageError, match=f"cannot hold {n} images"):
            train.split(n, 0)


def test_it_is_a_feed_and_says_what_it_is(train, root):
    assert train.to("cpu") is train and feed(train, torch.device("cpu")) is train
    moved = train.to("meta")
    assert moved.device.type == "meta" and train.device.type == "cpu" and len(moved) == N
    layout = train.source.layout
    assert (
        repr(train) == f"Stream('imagenet', 30 of 16×16, 3 classes, {layout}, cpu)"
        and train.default_epochs == 90
    )
    assert train.classes == (CLASSES if layout == "class folders" else ("class 0", "class 1", "class 2"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_batches_are_the_same(root, train):
    """They are the same up to float32's rounding, also while the device lags behind the host, whose buffers
    are then in use."""
    moved = train.to("cuda")
    moved.begin(3, 1)
    slow, found = torch.randn(4096, 4096, device="cuda"), []
    for batch in moved.batches(4):
        for _ in range(20):
            slow = slow @ slow
        found.append(batch)
    for (x, labels), (other, others) in zip(found, collected(train, 4), strict=True):
        assert x.is_cuda and x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(labels.cpu(), others) and (x.cpu() - other).abs().max() < 1e-5


def test_one_that_is_left_in_the_middle_leaves_no_process(root):
    stream, _ = read_imagenet(root, SIZE, workers=2)
    stream.begin(0, 0)
    batches = stream.batches(4)
    next(batches)
    again = collected(stream, 4)  # another beside it has processes of its own
    batches.close()
    same(collected(stream, 4), again)
    assert len(stream.crew._resting) == 1


@pytest.mark.parametrize("window", [1, 40, 10_000])
def test_shards_are_read_one_after_another_and_shuffled_within_the_window(window):
    shard_of = np.repeat([0, 1, 2, 5, 6], [100, 3, 250, 70, 77])
    order = draw(500, 3, 1, shard_of, window)
    assert sorted(order.samples) == sorted(order.fetched) == list(range(500))
    runs = [key for key, _ in itertools.groupby(shard_of[order.fetched])]
    assert sorted(runs) == [0, 1, 2, 5, 6] and runs != [0, 1, 2, 5, 6]  # each in one piece, in another order
    place = np.argsort(order.fetched)
    moved = np.abs(place[order.samples] - np.arange(500))
    assert moved.max() < window and (window == 1 or moved.mean() > min(window, 500) / 8)
    assert not np.array_equal(order.samples, draw(500, 3, 2, shard_of, window).samples)
    assert np.array_equal(order.samples, draw(500, 3, 1, shard_of, window).samples)


@pytest.mark.parametrize("make", [lambda path: path, lambda path: path / "nowhere"])
def test_neither_layout_is_one_line_that_names_both(tmp_path, make):
    where = make(tmp_path)
    with pytest.raises(
        UsageError,
        match=r"neither class folders .*/train/CLASS.*, nor WebDataset shards .*-train-000000\.tar",
    ) as caught:
        read_imagenet(where)
    assert str(caught.value).startswith(f"ImageNet is not in {where}") and "\n" not in str(caught.value)


def test_half_a_layout_is_named(tmp_path):
    folders(tmp_path / "a")
    (tmp_path / "a" / "val").rename(tmp_path / "a" / "test")
    assert len(read_imagenet(tmp_path / "a", SIZE)[1]) == 11  # test stands in for val
    (tmp_path / "a" / "test").rename(tmp_path / "a" / "tset")
    with pytest.raises(UsageError, match="a/val is not there"):
        read_imagenet(tmp_path / "a")
    shard(tmp_path / "b" / "imagenet-train-000000.tar", {})
    with pytest.raises(UsageError, match=r"b holds no shards of the val set; put .*imagenet-val-000000\.tar"):
        read_imagenet(tmp_path / "b")


def test_wrong_settings_and_missing_pillow(root, monkeypatch):
    for more in ({"size": 0}, {"workers": -1}):
        with pytest.raises(UsageError, match="at least"):
            read_imagenet(root, **more)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MachineError, match=r"pip install 'fastbn\[images\]'"):
        read_imagenet(root)
