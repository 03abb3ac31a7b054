"""Copies that are kept between runs: a damaged one is made anew, with a word, and nothing else that lies
there is."""

import json
import shutil

import data_stream
import numpy as np
import pytest

from fastbn.data.imagenet import read_imagenet
from fastbn.experiments.torri.glove import LONGEST, read_glove

VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "g.txt").write_text(
        "".join(f"w{k} {' '.join(map(str, row))}\n" for k, row in enumerate(VECTORS))
    )
    read_glove(tmp_path / "g.txt", 3)
    return tmp_path / "g.txt"


def array(path, values):
    np.save(path, values, allow_pickle=True)


def kept(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


GLOVE = {
    "empty": lambda matrix, words: matrix.write_bytes(b""),
    "cut header": lambda matrix, words: matrix.write_bytes(matrix.read_bytes()[:40]),
    "cut": lambda matrix, words: matrix.write_bytes(matrix.read_bytes()[:-1]),
    "an archive": lambda matrix, words: matrix.write_bytes(b"PK\x03\x04" + bytes(100)),
    "a bit": lambda matrix, words: matrix.write_bytes(matrix.read_bytes()[:-1] + b"\x01"),
    "one axis": lambda matrix, words: array(matrix, VECTORS[:, 0]),
    "float64": lambda matrix, words: array(matrix, VECTORS.astype(float)),
    "texts": lambda matrix, words: array(matrix, VECTORS.astype(str)),
    "objects": lambda matrix, words: array(matrix, VECTORS.astype(object)),
    "by columns": lambda matrix, words: array(matrix, np.asfortranarray(VECTORS)),
    "a folder": lambda matrix, words: matrix.unlink() or matrix.mkdir(),
    "a device": lambda matrix, words: matrix.unlink() or matrix.symlink_to("/dev/zero"),
    "deep words": lambda matrix, words: words.write_text("[" * 100_000),
    "no words": lambda matrix, words: words.write_text("7"),
    "not UTF-8": lambda matrix, words: words.write_bytes(b"\xff"),
    "other words": lambda matrix, words: kept(words, words=[1, 2, 3, 4]),
    "fewer words": lambda matrix, words: kept(words, words=["w0"]),
    "no digest": lambda matrix, words: kept(words, sha256=None),
}


@pytest.mark.parametrize("damage", GLOVE)
def test_a_damaged_copy_of_the_vectors_is_made_anew_with_a_word(text, damage, capsys):
    matrix, words = text.with_name("g.txt.fastbn.npy"), text.with_name("g.txt.fastbn.json")
    GLOVE[damage](matrix, words)
    place, vectors = read_glove(text, 3)
    assert np.array_equal(vectors, VECTORS) and place == {f"w{k}": k for k in range(4)}
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "is damaged (" in err and "made anew" in err
    if not matrix.is_dir():
        read_glove(text, 3)
        assert capsys.readouterr().err == ""


def test_a_copy_that_is_sound_absent_or_of_another_file_is_no_word(text, capsys):
    assert isinstance(read_glove(text, 3)[1], np.memmap)
    text.with_name("g.txt.fastbn.npy").unlink()
    read_glove(text, 3)
    text.write_text("a 1 2 3\n")
    assert read_glove(text, 3)[1].tolist() == [[1, 2, 3]]
    assert capsys.readouterr().err == ""


def test_the_copy_is_written_through_no_link(text, tmp_path):
    (tmp_path / "mine").write_bytes(b"precious")
    for name in ("g.txt.fastbn.npy", "g.txt.fastbn.json"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(tmp_path / "mine")
    assert np.array_equal(read_glove(text, 3)[1], VECTORS)
    assert (tmp_path / "mine").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a 1 nan 3\n", "line 1 holds a number that is not finite"),
        ("a 1 2 3\n\nb 1 2 1e999\n", "line 3 holds a number that is not finite"),
        ("a 1 2 3\n" + "x" * (LONGEST + 1), "line 2 is longer than 1,048,576 bytes"),
        ("a" + " 1" * 10_001, "line 1 holds 10,001 numbers, and up to 10,000 are read"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused_where_they_are_read(tmp_path, content, message):
    (tmp_path / "g.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_glove(tmp_path / "g.txt", 3)
    with pytest.raises(ValueError, match="a folder, not a file"):
        read_glove(tmp_path, 3)


def archive(path, **changes):
    with np.load(path) as saved:
        index = dict(saved)
    for name, value in changes.items():
        if value is None:
            del index[name]
        else:
            index[name] = value(index[name])
    np.savez(path, **index)


def compressed(path):
    with np.load(path) as saved:
        index = dict(saved)
    np.savez_compressed(path, **index | {"keys": np.zeros(1_000_000, "S8")})


def altered(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


INDEX = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "flags": lambda path: altered(path, path.read_bytes().index(b"PK\x01\x02") + 8),
    "compression": lambda path: altered(path, path.read_bytes().index(b"PK\x01\x02") + 10),
    "a bit": lambda path: altered(path, path.read_bytes().index(b"shard.npy") - 32),
    "an array missing": lambda path: archive(path, start=None),
    "an array short": lambda path: archive(path, keys=lambda keys: keys[:-1]),
    "another type": lambda path: archive(path, labels=lambda labels: labels.astype(float)),
    "objects": lambda path: archive(path, labels=lambda labels: labels.astype(object)),
    "two axes": lambda path: archive(path, start=lambda start: start[:, None]),
    "below 0": lambda path: archive(path, labels=lambda labels: labels - 5),
    "other shards": lambda path: archive(path, shard=lambda shard: shard + 9),
    "beyond the shard": lambda path: archive(path, size=lambda size: size + 1_000_000),
    "no samples": lambda path: archive(
        path, **dict.fromkeys(["labels", "shard", "start", "size", "keys"], lambda column: column[:0])
    ),
    "compressed": compressed,
    "a folder": lambda path: path.unlink() or path.mkdir(),
}


@pytest.mark.parametrize("damage", INDEX)
def test_a_damaged_index_of_shards_is_made_anew_with_a_word(tmp_path, monkeypatch, damage, capsys):
    pytest.importorskip("webdataset", reason="needs the extra fastbn[webdataset]")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = data_stream.shards(tmp_path / "data", (4, 3), 4)

    def read():
        return [
            (stream.source.labels.tolist(), stream.source.keys.tolist())
            for stream in read_imagenet(root, 16, workers=0)
        ]

    good = read()
    assert read() == good and capsys.readouterr().err == ""
    for path in (tmp_path / "cache" / "fastbn").glob("shards-*.npz"):
        INDEX[damage](path)
    assert read() == good
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and err.count("is damaged (") == err.count("; it is made anew") == 2
    if damage == "a folder":
        shutil.rmtree(tmp_path / "cache")
    assert read() == good and capsys.readouterr().err == ""
