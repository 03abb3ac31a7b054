"""Torri's readers: tweets from CSV and GloVe vectors, sound and broken, and a run on them."""

import csv
import json

import numpy as np
import pytest
import torch
from runs import checkpoint

from fastbn.data.datasets import load as load_data
from fastbn.data.feed import feed
from fastbn.errors import UsageError
from fastbn.experiments.torri.glove import read_glove
from fastbn.experiments.torri.tweets import LONGEST, PAD, UNKNOWN, read_tweets, tokens
from fastbn.train import main
from fastbn.training.checkpoint import load

pytestmark = pytest.mark.usefixtures("one_thread")

POSITIVE, NEGATIVE = ["love", "café", "great", "sun"], ["hate", "rain", "sad", "broken"]


def rows(n=200, index=False):
    """Sentences of which polarity is a word's doing."""
    draws = np.random.default_rng(0)
    for i in range(n):
        words = [str(draws.choice(POSITIVE if i % 2 else NEGATIVE)) for _ in range(1 + i % 7)]
        row = [
            "4" if i % 2 else "0",
            str(i),
            "Mon May 11",
            "NO_QUERY",
            "user",
            f"@bob {' '.join(words)}, http://t.co/x{i}",
        ]
        yield [str(i), *row] if index else row


def write(path, lines):
    with open(path, "w", encoding="iso-8859-1", newline="") as file:
        csv.writer(file).writerows(lines)
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "tweets.csv", rows())
    return tmp_path / "data"


def test_tokens():
    assert tokens("@Bob I LOVE café!! 24 http://x.y/z www.q.r don't :)") == [
        "user", "i", "love", "café", "!!", "number", "link", "link", "don't", ":)",
    ]  # fmt: skip


@pytest.mark.parametrize("index", [False, True], ids=["as distributed", "row index in front"])
def test_read_tweets(tmp_path, index):
    train, test = read_tweets(write(tmp_path / "t.csv", rows(index=index)))
    assert (len(train), len(test)) == (160, 40) and train.vocabulary == test.vocabulary
    assert train.vocabulary[:2] == ("<pad>", "<unknown>") and {"love", "hate", "user", "link"} <= set(
        train.vocabulary
    )
    assert train.words.shape == (160, LONGEST) and int(train.lengths.min()) >= 3
    for words, length, label in zip(train.words, train.lengths, train.labels, strict=True):
        assert (words[length:] == PAD).all() and (words[:length] != PAD).all()
        assert {train.vocabulary[i] for i in words} & set(POSITIVE if label else NEGATIVE)
    again = read_tweets(tmp_path / "t.csv")[0]
    assert torch.equal(train.words, again.words)
    rare = read_tweets(tmp_path / "t.csv", min_count=10_000)[0]
    assert rare.vocabulary == ("<pad>", "<unknown>") and (rare.words[0, : rare.lengths[0]] == UNKNOWN).all()


def test_a_feed_of_tweets(folder):
    train = feed(read_tweets(folder)[0].limit(30), torch.device("cpu"))
    train.begin(1, 0)
    batches = [train.load(*inputs) for inputs in train.batches(12)]
    assert [len(x) for x, _ in batches] == [12, 12, 6] and batches[0][0].shape == (12, 1 + LONGEST)
    train.begin(1, 0)
    assert torch.equal(train.load(*next(train.batches(12)))[0], batches[0][0])
    train.begin(1, 1)
    assert not torch.equal(train.load(*next(train.batches(12)))[0], batches[0][0])
    x, labels = next(train.held_out(7))
    assert torch.equal(x[:, 1:], train.words[:7]) and torch.equal(labels, train.labels[:7])
    rest, held = train.split(10, 3)
    assert (len(rest), len(held)) == (20, 10)


def test_broken_rows_are_counted_and_skipped(tmp_path, capfd):
    write(tmp_path / "t.csv", [*rows(298), ["4", "too", "short"], ["2", "", "", "", "", "neutral"]])
    train, test = read_tweets(tmp_path)
    assert len(train) + len(test) == 298
    assert "2 broken rows" in capfd.readouterr().err
    write(tmp_path / "t.csv", [*rows(100), ["4", "too", "short"], ["2", "", "", "", "", "neutral"]])
    with pytest.raises(
        UsageError,
        match=r"2 of 102 rows of .*t.csv are broken, more than 1% \(line 101: 3 fields, polarity '4'\)",
    ):
        read_tweets(tmp_path)


def test_no_csv_and_too_many(tmp_path):
    with pytest.raises(UsageError, match="0 CSV files there"):
        load_data("tweets", tmp_path)
    with pytest.raises(UsageError, match="no such folder or file"):
        load_data("tweets", tmp_path / "nowhere")
    write(tmp_path / "t.csv", rows(4))
    with pytest.raises(UsageError, match="holds 4 tweets"):
        load_data("tweets", tmp_path / "t.csv")


# a word may hold a space
VECTORS = {"love": [1.0, 2.0, -3.5], "hate": [0.25, -1.0, 4.0], ". .": [7.0, 8.0, 9.0]}


def glove(path):
    lines = [f"{word} {' '.join(map(str, numbers))}" for word, numbers in VECTORS.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_glove_is_read_once_and_mapped(tmp_path):
    path = glove(tmp_path / "g.txt")
    for _ in range(2):
        place, vectors = read_glove(path, 3)
        assert {word: vectors[row].tolist() for word, row in place.items()} == VECTORS
    assert isinstance(vectors, np.memmap)
    path.write_text("other 5 6 7\n")
    place, vectors = read_glove(path, 3)
    assert list(place) == ["other"] and vectors.tolist() == [[5, 6, 7]]


@pytest.mark.parametrize(
    "content, message",
    [
        ("a 1 2\nb 3 4\n", "have 2 numbers a word, the embedding takes 3; give --embedding 2"),
        ("a 1 2 3\nb 3 4\n", "line 2 is not a word and 3 numbers"),
        ("a 1 2 3\nb 3 4 x\n", "line 2"),
        ("", "the file is empty"),
        (None, "No such file"),
    ],
)
def test_a_glove_file_that_cannot_be_used(tmp_path, content, message):
    if content is not None:
        (tmp_path / "g.txt").write_text(content)
    with pytest.raises(UsageError, match=message):
        read_glove(tmp_path / "g.txt", 3)


def run(folder, out, *arguments):
    recipe = [
        "--epochs",
        "3",
        "--batch-size",
        "16",
        "--optimizer",
        "adam",
        "--lr",
        "0.01",
        "--width",
        "8",
        "--embedding",
        "3",
    ]
    return main(
        [
            "--family",
            "lstm",
            "--dataset",
            "tweets",
            "--data-dir",
            str(folder),
            *recipe,
            "--out",
            str(out),
            *arguments,
        ]
    )


def test_an_lstm_learns_tweets(folder, tmp_path, capfd):
    assert run(folder, tmp_path / "run", "--train", "all", "--epochs", "8") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.9 and summary["engine"] == "stock"
    assert "there are no convolutions" in capfd.readouterr().err


def test_vectors_start_the_embedding_and_are_kept(folder, tmp_path, capfd):
    glove(tmp_path / "g.txt")
    assert run(folder, tmp_path / "run", "--vectors", str(tmp_path / "g.txt")) == 0
    model, vocabulary = load(tmp_path / "run"), read_tweets(folder)[0].vocabulary
    for word in ("love", "hate"):
        assert model.embedding.weight[vocabulary.index(word)].tolist() == VECTORS[word]
    assert (model.embedding.weight[PAD] == 0).all()
    assert checkpoint(tmp_path / "run")[1]["source"]["kind"] == "stored"
    assert run(folder, tmp_path / "wide", "--vectors", str(tmp_path / "g.txt"), "--embedding", "4") == 2
    assert "--embedding 3" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--family", "lstm", "--dataset", "digits"], "family lstm reads words, and digits holds images"),
        (["--depth", "8", "--dataset", "tweets"], "reads images, and tweets holds words"),
        (["--depth", "8", "--dataset", "digits", "--vectors", "g.txt"], "it is for --family lstm"),
        (["--family", "lstm", "--dataset", "tweets", "--pixels", "unit"], "are of images in memory"),
    ],
)
def test_words_and_images_are_not_confused(folder, tmp_path, capfd, arguments, message):
    assert main([*arguments, "--data-dir", str(folder), "--out", str(tmp_path / "run")]) == 2
    assert message in capfd.readouterr().err
