"""WebDataset shards: found by name, indexed by their headers, as the webdataset package reads them; and
what is wrong with one."""

from __future__ import annotations

import functools
import os
import sys

import numpy as np
import pytest
from data_stream import content, samples, shard, shards

from fastbn.data.imagenet import order, read_imagenet, worker
from fastbn.data.imagenet import shards as module
from fastbn.data.imagenet import stream as stream_module
from fastbn.data.imagenet.members import members
from fastbn.data.imagenet.shards import find_shards
from fastbn.data.imagenet.worker import read
from fastbn.errors import MachineError, UsageError

webdataset = pytest.importorskip("webdataset", reason="needs the extra fastbn[webdataset]")
SIZE = 16


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastbn"


@pytest.fixture
def root(tmp_path):
    return shards(tmp_path / "data")


def sources(root):
    return [stream.source for stream in read_imagenet(root, SIZE, workers=0)]


def test_samples_are_those_that_webdataset_reads(root):
    for source, split in zip(sources(root), ("train", "val"), strict=True):
        urls = [str(path) for path in sorted(root.glob(f"imagenet-{split}-*.tar"))]
        expected = list(webdataset.WebDataset(urls, shardshuffle=False))
        assert len(source) == len(expected)
        for k, sample in enumerate(expected):
            image = next(sample[kind] for kind in ("jpg", "jpeg", "png") if kind in sample)
            assert read(source.location(k)) == image
            assert source.labels[k] == int(sample["cls"]) and source.keys[k].decode() == sample["__key__"]
            assert source.describe(k) == f"{sample['__key__']} in {sample['__url__']}"


def test_what_its_writer_writes_is_read(tmp_path):
    """Its ShardWriter writes folders, long names, and an extension of two parts beside."""
    (tmp_path / "data").mkdir()
    keys = ["a/b.c/0001", "n01440764/" + "x" * 120, "plain"]  # b.c: a dot in a folder's name
    for split in ("train", "validation"):
        with webdataset.ShardWriter(
            str(tmp_path / "data" / f"in1k-{split}-%04d.tar"), maxcount=2, verbose=0
        ) as writer:
            for k, key in enumerate(keys):
                writer.write({"__key__": key, "jpg": content(k), "cls": k, "seg.png": b"-", "json": {"a": 1}})
    train, test = sources(tmp_path / "data")
    assert (
        [key.decode() for key in train.keys] == keys
        and train.labels.tolist() == [0, 1, 2]
        and train.shard.tolist() == [0, 0, 1]
    )
    assert [read(test.location(k)) for k in range(3)] == [content(k) for k in range(3)]
    assert train.classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["imagenet-train-000001.tar", "imagenet-train-000000.tar", "imagenet-val-000000.tar"], 2, 1),
        (["imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar", "imagenet1k-test-00.tar"], 1, 1),
        (["train_0.tar", "test_0.tar", "val.tar.gz", "training.tar", "trainval-0.tar", "train_0.json"], 1, 1),
        (["ILSVRC2012_img.tar"], 0, 0),
    ],
)
def test_shards_are_found_by_their_names(tmp_path, names, train, test):
    for name in names:
        (tmp_path / name).touch()
    found = find_shards(tmp_path)
    assert (len(found[0]), len(found[1])) == (train, test) and list(found[0]) == sorted(found[0])
    assert not any("test" in name for name in found[1]) or "test_0.tar" in names


def test_the_index_is_kept_until_a_shard_changes(root, cache, monkeypatch):
    counted = []
    monkeypatch.setattr(
        module, "_scan", lambda *more, scan=module._scan: counted.append(more[1]) or scan(*more)
    )
    first = sources(root)
    assert len(counted) == 2 and len(list(cache.iterdir())) == 2
    again = sources(root)
    assert len(counted) == 2
    for a, b in zip(first, again, strict=True):
        for name in ("files", "shard", "start", "size", "labels", "keys"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
        assert a.classes == b.classes
    shard(root / "imagenet-train-000001.tar", samples(0, 2))
    assert len(sources(root)[0]) == 8 + 2 + 9 + 8 and len(counted) == 3
    for path in cache.iterdir():
        path.write_bytes(b"damaged")
    assert len(sources(root)[0]) == 27 and len(counted) == 5


def test_a_long_reading_of_headers_is_announced(root, monkeypatch, capfd):
    monkeypatch.setattr(module, "LONG", 4)
    for expected in (f"fastbn: reading the headers of 4 shards in {root}, this once\n", ""):
        sources(root)
        assert capfd.readouterr().err == expected


def test_shards_are_fetched_from_end_to_end_ahead_of_the_samples(root, monkeypatch):
    """What is asked of the system, in order: each shard's images as they lie, once; all but the window
    that reading begins with."""
    told = []
    monkeypatch.setattr(stream_module, "draw", functools.partial(order.draw, window=5))
    monkeypatch.setattr(
        os,
        "posix_fadvise",
        lambda fd, start, size, advice: told.append((os.readlink(f"/proc/self/fd/{fd}"), start, size)),
    )
    stream, _ = read_imagenet(root, SIZE, workers=0)
    stream.begin(3, 1)
    assert sum(len(labels) for _, labels in stream.batches(8)) == 30
    drawn = order.draw(30, 3, 1, stream.source.shard, 5)
    assert told == [tuple(stream.source.location(int(k))) for k in drawn.fetched[5:]]


def test_without_a_place_for_the_index_it_is_read_again(root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(sources(root)[0]) == len(sources(root)[0]) == 30


@pytest.mark.parametrize("cut", ["within", "header", "between", "middle"])
def test_a_shard_that_is_cut_off_is_used_so_far_and_named(root, cut, capfd):
    path = root / "imagenet-train-000002.tar"
    found, wrong = members(str(path))
    assert len(found) == 27 and wrong == ""
    last = found[-1]  # an image; its json and its class come before
    end = {
        "within": last.start + last.size // 2,
        "header": last.start - 100,
        "between": last.start - 512,
        "middle": found[9].start,
    }[cut]
    with open(path, "r+b") as file:
        file.truncate(end)
    expected = {"within": 8, "header": 8, "between": 8, "middle": 3}[cut]
    stream, _ = read_imagenet(root, SIZE, workers=1)
    assert len(stream) == 30 - 9 + expected
    err = capfd.readouterr().err
    assert (
        err.count("fastbn: skipped") == 1
        and f"skipped {path} (" in err
        and "members before that are used" in err
    )
    stream.begin(0, 0)
    assert (
        sum(len(labels) for _, labels in stream.batches(8)) == 21 + expected and capfd.readouterr().err == ""
    )
    read_imagenet(root, SIZE, workers=0)
    assert f"skipped {path} (" in capfd.readouterr().err  # the kept index says it too


def test_a_damaged_header_ends_a_shard_with_a_word(root, capfd):
    path = root / "imagenet-train-000000.tar"
    start = members(str(path))[0][6].start  # the third sample's json
    with open(path, "r+b") as file:
        file.seek(start - 512)
        file.write(b"\xff" * 512)
    assert len(sources(root)[0]) == 22 + 2
    assert f"skipped {path} (cut off or damaged at byte" in capfd.readouterr().err


@pytest.mark.parametrize("junk", [b"", b"no tar at all" * 100])
def test_what_is_no_tar_is_named(root, junk, capfd):
    (root / "imagenet-train-000003.tar").write_bytes(junk)
    assert len(sources(root)[0]) == 22
    assert f"skipped {root}/imagenet-train-000003.tar (" in capfd.readouterr().err


def test_samples_without_image_or_class_are_named_and_too_many_an_error(root, capfd):
    odd = {"x.cls": b"1", "y.jpg": content(0), "z.jpg": content(1), "z.cls": b"ant"}
    for n, names in ((2, ("x", "y")), (3, ("x", "y", "z"))):
        chosen = {name: data for name, data in odd.items() if name[0] in names}
        shard(root / "imagenet-train-000000.tar", chosen | samples(0, 8))
        if n == 2:
            assert len(sources(root)[0]) == 30
            err = capfd.readouterr().err
            assert (
                "skipped x in" in err
                and "(no jpg, jpeg or png)" in err
                and "skipped y in" in err
                and "(no class)" in err
            )
        else:
            with pytest.raises(
                UsageError,
                match=r"3 of the 33 samples and shards of .* can't be read, .*z in .* \(no class\)",
            ):
                sources(root)


def test_shards_that_hold_nothing_are_an_error(root):
    for path in root.glob("imagenet-val-*.tar"):
        shard(path, {"a.txt": b"1", "b.cls": b"2"})
    with pytest.raises(
        UsageError, match=r"imagenet-val-000000\.tar … hold no sample with an image .* \(a in "
    ):
        sources(root)


def test_a_shard_that_shrinks_under_a_run_is_a_broken_image(root, capfd):
    stream, _ = read_imagenet(root, SIZE, workers=0)
    worker._opened.cache_clear()
    path = root / "imagenet-train-000003.tar"
    last = stream.source.location(29)
    os.truncate(path, last.start + 10)
    stream.begin(0, 0)
    assert sum(len(labels) for _, labels in stream.batches(8)) == 30
    assert f"skipped s00029 in {path} (OSError: " in capfd.readouterr().err


def test_without_webdataset_the_extra_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    with pytest.raises(MachineError, match=r"pip install 'fastbn\[webdataset\]'"):
        sources(root)
