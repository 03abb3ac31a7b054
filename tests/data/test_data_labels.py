"""Labels that data may hold, and CIFAR's pickles: how many classes they may ask for, and what a refusal
repeats."""

import os
import pickle

import data_stream
import pytest
import torch
from damage import refused
from data_cifar import binary_blob, python_blob, random_set

from fastbn.data import Images, load
from fastbn.data.imagenet import read_imagenet
from fastbn.data.unpickle import read_batch


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("label", [b"1000", b"999999999", b"9" * 19, b"9" * 60])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_shards_wrong_label_is_named(tmp_path, label, split):
    pytest.importorskip("webdataset", reason="needs the extra fastbn[webdataset]")
    data_stream.shards(tmp_path, (6,), 5)
    path = next(tmp_path.glob(f"imagenet-{split}-*.tar"))
    data_stream.shard(
        path, {**data_stream.samples(0, 6), "odd.cls": label, "odd.png": data_stream.content(5, "PNG")}
    )
    for _ in range(2):  # by the kept index too
        refused(
            read_imagenet,
            tmp_path,
            16,
            workers=0,
            match=r"the class of odd in .*\.tar is [0-9,]+, and must be below 1,000 in a set of",
        )


def test_few_samples_may_have_imagenets_classes(tmp_path):
    pytest.importorskip("webdataset", reason="needs the extra fastbn[webdataset]")
    data_stream.shards(tmp_path, (6,), 5)
    data_stream.shard(
        tmp_path / "imagenet-train-000000.tar", {"a.cls": b"999", "a.png": data_stream.content(5, "PNG")}
    )
    assert len(read_imagenet(tmp_path, 16, workers=0)[0].classes) == 1_000


def test_an_array_of_labels_has_the_same_rule():
    pixels = torch.zeros(100, 1, 1, 3, dtype=torch.uint8)
    labels = torch.arange(100)
    assert len(Images(pixels, 32 * labels).classes) == 32 * 99 + 1
    labels[3] = 32 * 100
    refused(Images, pixels, labels, match="a label is 3,200, and must be below 3,200 in a set of 100 samples")
    assert len(Images(pixels, labels, [str(k) for k in range(4_000)]).classes) == 4_000
    refused(Images, pixels, [10**30] * 100, match="labels must be integers of at most 64 bits")
    refused(Images, pixels, ["a"] * 100, match="labels must be integers")


@pytest.mark.parametrize("label", [-1, 2**31, 2**63, 10**30, True])
def test_a_pickles_labels_are_class_numbers(label):
    planes, labels = random_set(3, 10)
    blob = python_blob(planes, labels)
    assert read_batch(blob, "batch", "labels")[1].tolist() == labels.tolist()
    content = pickle.loads(blob, encoding="bytes")
    content[b"labels"][1] = label
    refused(
        read_batch, pickle.dumps(content, 2), "batch", "labels", match="something else than 3 integers from 0"
    )


@pytest.mark.parametrize("data", [list(range(100_000)), b"x" * 10_000_000, "\n" * 1000, {1: 2}])
def test_a_refusal_does_not_repeat_the_file(data):
    refused(
        read_batch,
        pickle.dumps({b"data": data, b"labels": []}, 4),
        "batch",
        "labels",
        match="holds as data a ",
    )
    refused(
        read_batch, b"\x80\x02c" + b"x" * 100_000 + b"\nname\n.", "batch", "labels", match="names x+…x+.name"
    )


def test_a_pickles_numbers_make_no_table():
    refused(
        read_batch, b"\x80\x02}r\xff\xff\xff\x7f.", "batch", "labels", match="lacks data"
    )  # an object numbered 2**31 - 1


def test_the_records_limits_are_checked_before_reading(tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for k in range(1, 6):
        os.truncate(_touched(tmp_path / "cifar-10-batches-bin" / f"data_batch_{k}.bin"), 1 << 42)
    refused(load, "cifar10", tmp_path, match="expected 30,730,000 bytes, found 4,398,046,511,104")
    (tmp_path / "cifar-100-python").mkdir()
    os.truncate(_touched(tmp_path / "cifar-100-python" / "train"), 1 << 42)
    refused(load, "cifar100", tmp_path, match="more than the 268,435,456 that such a file may have")
    assert len(binary_blob(*random_set(2, 10))) == 2 * 3_073


def _touched(path):
    path.touch()
    return path
