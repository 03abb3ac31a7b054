"""A DataLoader, or any iterable of pairs, as a feed: the same samples cut to the batches of a step, one pass
per epoch."""

import pytest
import torch
from runs import digits, network
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fastbn import fit
from fastbn.data.augment import batch
from fastbn.data.batches import Batches
from fastbn.data.feed import Feed, feed
from fastbn.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
X, Y = torch.arange(23 * 12.0).view(23, 3, 2, 2), torch.arange(23) % 4


class Passes:
    """Pairs of these sizes, each a view of X and Y; counts its passes."""

    def __init__(self, *sizes, second=()):
        self.sizes, self.second, self.passes = sizes, second, 0

    def __iter__(self):
        self.passes += 1
        start = 0
        for size in self.second if self.second and self.passes > 1 else self.sizes:
            yield X[start : start + size], Y[start : start + size].to(torch.int32)
            start += size


def joined(batches):
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


@pytest.mark.parametrize("sizes", [(23,), (5, 5, 5, 5, 3), (1, 0, 16, 6), (8, 8, 7)])
@pytest.mark.parametrize("size", [1, 7, 8, 23, 100])
def test_pairs_are_cut_to_the_batch_size(sizes, size):
    source = feed(Passes(*sizes), CPU, "train")
    assert isinstance(source, Feed) and len(source) == 23 and source.sample == (3, 2, 2)
    source.begin(0, 0)
    batches = [source.load(*inputs) for inputs in source.batches(size)]
    assert [len(labels) for _, labels in batches] == [size] * (23 // size) + [23 % size] * (23 % size > 0)
    x, labels = joined(batches)
    assert torch.equal(x, X) and torch.equal(labels, Y) and labels.dtype == torch.int64
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part, _ in batches)
    assert all(torch.equal(a, b) for a, b in zip(joined(source.held_out(size)), (X, Y), strict=True))
    if size < 23:
        tail = joined(source.batches(size, first=1))
        assert torch.equal(tail[0], X[size:]) and torch.equal(tail[1], Y[size:])


@pytest.mark.parametrize(
    ("more", "count", "passes"),
    [
        ({}, 23, 0),
        ({"drop_last": True}, 20, 0),
        ({"shuffle": True}, 23, 0),
        ({"batch_sampler": [[0, 1], [5]]}, 3, 1),
    ],
)
def test_a_loader_tells_its_samples_and_anything_else_is_counted(more, count, passes):
    class Counted(DataLoader):
        begun = 0

        def __iter__(self):
            Counted.begun += 1
            return super().__iter__()

    given = {} if "batch_sampler" in more else {"batch_size": 5}
    source = Batches(Counted(TensorDataset(X, Y), **given, **more))
    assert len(source) == len(source) == count == sum(len(labels) for _, labels in source.batches(4))
    assert Counted.begun == passes + 1


def test_a_stream_of_samples_is_counted():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(zip(X, Y, strict=True))

    assert len(Batches(DataLoader(Endless(), batch_size=4))) == 23


def test_training_on_pairs_is_training_on_the_images():
    """Losses and parameters are the same bits, without augmentation and in the order of the images'
    epochs."""
    train, test = digits()
    train, seed, size = train.prepared("none"), 5, 24
    source = feed(train, CPU)
    passes = []

    class Epochs:
        def __iter__(self):
            source.begin(seed, len(passes) - 1)  # the first pass counts
            passes.append(None)
            return iter([source.load(*inputs) for inputs in source.batches(10)])

    everything = batch(test, torch.arange(len(test)), None), test.labels
    histories, models = [], []
    for data in ((train, test), (Epochs(), [everything])):
        models.append(network(engine="stock"))
        histories.append(fit(models[-1], *data, epochs=2, batch_size=size, seed=seed, progress=False))
    assert len(passes) == 3  # counted, and two epochs
    for ours, theirs in zip(*histories, strict=True):
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "step"):
            assert ours[name] == theirs[name], name
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


REFUSED = {
    "a generator": (lambda: (pair for pair in [(X, Y)]), "can be gone through only once"),
    "no pairs": (lambda: [1, 2], "must be fastbn.Images.*got list"),
    "a pair": (lambda: (X, Y), "must be fastbn.Images.*got tuple"),
    "a tensor": (lambda: X, "must be fastbn.Images.*got Tensor"),
    "a data set": (
        lambda: TensorDataset(X, Y),
        "must be fastbn.Images.* or a DataLoader of .*got TensorDataset",
    ),
    "triples": (lambda: DataLoader(TensorDataset(X, Y, Y)), r"must give pairs of .*; got a list of 3"),
    "dictionaries": (lambda: DataLoader([{"image": X[0], "label": 1}]), "got a dict"),
    "bytes": (lambda: [(X.byte(), Y)], r"got uint8 \(23, 3, 2, 2\) and int64 \(23,\)"),
    "soft labels": (lambda: [(X, torch.ones(23, 4))], r"and float32 \(23, 4\)"),
    "fewer labels": (lambda: [(X, Y[1:])], r"and int64 \(22,\)"),
    "other sizes": (lambda: [(X, Y), (torch.ones(1, 3, 4, 4), Y[:1])], r"got \(3, 4, 4\) after \(3, 2, 2\)"),
    "nothing": (lambda: DataLoader([]), "holds no samples"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what):
    make, message = REFUSED[what]
    with pytest.raises(UsageError, match=f"^train .*{message}") as caught:
        source = feed(make(), CPU, "train")
        assert source.sample and len(source)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("second", "gave"), [((17,), "17"), ((10, 10), "20"), ((20, 3), "more than 21"), ((22,), "more than 21")]
)
def test_a_pass_of_another_number_is_refused(second, gave):
    source = Batches(Passes(20, 1, second=second), what="train")
    assert len(source) == 21
    with pytest.raises(
        UsageError, match=f"a pass through train gave {gave} samples, where it was to give 21"
    ):
        list(source.batches(8))


def test_ranks_are_refused():
    source = Batches([(X, Y)], what="train")
    for batches in (source.batches(8, 0, (0, 2)), source.held_out(8, (1, 2))):
        with pytest.raises(UsageError, match="an order of its own in each of the 2 ranks; pass fastbn"):
            list(batches)
