"""Broken images of a stream: replaced in training, left out in evaluation, counted and named."""

from __future__ import annotations

import itertools

import pytest
import torch
from data_stream import content, folders
from stream_batches import SIZE, collected, same

from fastbn.data.imagenet import read_imagenet
from fastbn.data.imagenet.broken import Broken
from fastbn.errors import UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def broken_folders(root, n, kinds=(b"", b"no image")):
    """`folders`, of whose training images the first n of one class are broken."""
    folders(root, 300)
    paths = sorted((root / "train" / "bee").iterdir())[:n]
    for k, path in enumerate(paths):
        path.write_bytes(kinds[k % len(kinds)] if k % 3 else content(k)[:200])
    return [str(path) for path in paths]


def test_broken_images_are_replaced_by_the_next_and_named(tmp_path, capfd):
    names = broken_folders(tmp_path, 2)
    stream, _ = read_imagenet(tmp_path, SIZE, workers=0)
    batches = collected(stream, 64)
    err = capfd.readouterr().err
    assert [len(labels) for _, labels in batches] == [64, 64, 64, 64, 44]
    assert len(err.splitlines()) == 2 and all(f"fastbn: skipped {name} (" in err for name in names)
    other, _ = read_imagenet(tmp_path, SIZE, workers=3)
    same(collected(other, 64), batches)
    same(collected(other, 64, first=2), batches[2:])
    halves = [collected(stream, 64, share=(rank, 2)) for rank in range(2)]
    same(
        [tuple(torch.cat(pair) for pair in zip(*parts, strict=True)) for parts in zip(*halves, strict=True)],
        batches,
    )
    capfd.readouterr()
    collected(stream, 64)
    assert capfd.readouterr().err == ""  # said once
    labels = torch.cat([labels for _, labels in batches])
    assert labels.bincount().tolist() == [100, 100, 100]  # the next ones are of the same class
    # the replacement is the third, with its own crop: three equal pictures
    rows = [row.numpy().tobytes() for x, _ in batches for row in x]
    assert max(map(rows.count, rows)) == 3 and len(set(rows)) == 298


def test_in_evaluation_they_are_left_out(tmp_path, capfd):
    folders(tmp_path)
    (tmp_path / "val" / "bee" / "0001.JPEG").write_bytes(b"no image")
    _, test = read_imagenet(tmp_path, SIZE, workers=0)
    assert [len(labels) for _, labels in test.held_out(1)] == [1] * 10
    assert "val/bee/0001.JPEG (UnidentifiedImageError" in capfd.readouterr().err


def test_too_many_broken_are_an_error_with_examples(tmp_path, capfd):
    names = broken_folders(tmp_path, 4)
    stream, _ = read_imagenet(tmp_path, SIZE, workers=2)
    with pytest.raises(
        UsageError, match=r"4 of the 300 images of imagenet can't be read.*; repair or remove"
    ) as caught:
        collected(stream, 64)
    assert "\n" not in str(caught.value) and sum(name in str(caught.value) for name in names) == 3
    assert not stream.crew._resting


def test_a_set_of_broken_images_alone_is_an_error(tmp_path):
    for split, name in itertools.product(("train", "val"), "ab"):
        path = tmp_path / split / "ant" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    for stream in read_imagenet(tmp_path, SIZE, workers=0):
        with pytest.raises(UsageError, match="2 of the 2"):
            collected(stream)
        with pytest.raises(UsageError, match="2 of the 2"):
            list(stream.held_out(2))


def test_a_few_names_are_enough(capfd):
    broken, said = Broken(10_000, "images"), set()
    for k in range(50):
        broken.note(f"file {k}", "torn")
        broken.say(said)
    lines = capfd.readouterr().err.splitlines()
    assert lines[:5] == [f"fastbn: skipped file {k} (torn)" for k in range(5)]
    assert lines[5:] == ["fastbn: more are skipped, without their names"]
    broken.note("file 1", "torn")
    assert len(broken) == 50
