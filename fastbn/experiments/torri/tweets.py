"""Tweets with their polarity, as Sentiment140 is distributed, as padded word indices that lie whole on one
device.

Source   Go, Bhayani, Huang 2009, Twitter Sentiment Classification using Distant Supervision.
Format   CSV, ISO-8859-1, no header: polarity (0 or 4), id, date, query, user, text; a slice may have a row
index in front."""

from __future__ import annotations

import collections
import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from fastbn import draws
from fastbn.errors import UsageError
from fastbn.files import is_file, is_folder, opened, reason, shown
from fastbn.machine.environment import place

PAD, UNKNOWN = 0, 1
MIN_COUNT = 5  # of a word in the training tweets; a rarer one is UNKNOWN
LINE = 1 << 20  # characters of a line, most of which have some 140
LONGEST = 40  # words of a tweet that are read; 99.9% of tweets are shorter
TEST_SHARE = 5  # one tweet in five is for the test
BROKEN = 0.01  # the share of rows that may be broken
CLASSES = {"0": 0, "4": 1}
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+|[#<>:;()!?]+")


def tokens(text: str) -> list[str]:
    """Return the words of a tweet: lower case; links, names and numbers each as one word."""
    text = re.sub(r"https?://\S+|www\.\S+", " link ", text.lower())
    text = re.sub(r"@\w+", " user ", text)
    return ["number" if word.isdecimal() else word for word in WORD.findall(text)]


class Tweets:
    """Labelled sentences on one device; a feed of (N, 1 + T) int64: the length, then word indices padded by
    PAD.

    words (N, T) int64, lengths (N,) int64 of at least 1, labels (N,) int64; vocabulary: the words by index.
    """

    default_epochs = 10
    classes = ("negative", "positive")

    def __init__(
        self, words: Tensor, lengths: Tensor, labels: Tensor, vocabulary: Sequence[str], name: str = "tweets"
    ):
        self.words, self.lengths, self.labels, self.vocabulary, self.name = (
            words,
            lengths,
            labels,
            tuple(vocabulary),
            name,
        )
        self._order: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.words.device

    @property
    def sample(self) -> tuple[int]:
        return (1 + self.words.shape[1],)

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.lengths.nbytes + self.labels.nbytes

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Tweets:
        return Tweets(
            self.words.to(device), self.lengths.to(device), self.labels.to(device), self.vocabulary, self.name
        )

    def take(self, indices: Tensor) -> Tweets:
        return Tweets(
            self.words[indices], self.lengths[indices], self.labels[indices], self.vocabulary, self.name
        )

    def limit(self, n: int | None) -> Tweets:
        """Return `n` of them, always the same ones; None or n ≥ N: all."""
        if n is None or n >= len(self):
            return self
        return self.take(torch.from_numpy(draws.permutation(0, f"limit/{self.name}", len(self))[:n]))

    def split(self, n: int, seed: int) -> tuple[Tweets, Tweets]:
        """Return (the rest, `n` held out), drawn by the seed."""
        if not 1 <= n < len(self):
            raise UsageError(f"cannot hold {n} tweets out of {len(self)}; ask for 1 … {len(self) - 1}")
        order = torch.from_numpy(draws.permutation(seed, f"split/{self.name}", len(self)))
        return self.take(order[n:].sort().values), self.take(order[:n].sort().values)

    def begin(self, seed: int, epoch: int) -> None:
        drawn = torch.from_numpy(draws.permutation(seed, f"epoch/{epoch}/order", len(self))).to(self.device)
        self._order = drawn

    def batches(
        self, size: int, first: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, ...]]:
        assert self._order is not None, "begin() draws the epoch first"
        rank, ranks = share
        for indices in self._order.split(size)[first:]:
            yield (indices.tensor_split(ranks)[rank],)

    def load(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        (indices,) = inputs
        return torch.cat([self.lengths[indices, None], self.words[indices]], 1), self.labels[indices]

    def held_out(self, size: int, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[Tensor, Tensor]]:
        rank, ranks = share
        for indices in torch.arange(len(self), device=self.device).split(size)[rank::ranks]:
            yield self.load(indices)


def read_tweets(data_dir: str | Path, min_count: int = MIN_COUNT) -> tuple[Tweets, Tweets]:
    """Return (train, test) of the one CSV in `data_dir` (or that file): four in five and one in five, always
    the same ones. The vocabulary is the training tweets' words that occur at least `min_count` times.

    Up to 1% of broken rows are skipped, counted on stderr; raises UsageError beyond, naming the first, and
    where there is no such file."""
    path = _csv(Path(data_dir))
    texts, labels = _rows(path)
    order = draws.permutation(0, "tweets/split", len(texts))
    test, train = order[: len(order) // TEST_SHARE], order[len(order) // TEST_SHARE :]
    if not len(test):
        raise UsageError(f"{path} holds {len(texts)} tweets; training and testing need at least {TEST_SHARE}")
    sentences = [tokens(text)[:LONGEST] for text in texts]
    counts = collections.Counter(word for i in train for word in sentences[i])
    known = sorted(
        (word for word, n in counts.items() if n >= min_count), key=lambda word: (-counts[word], word)
    )
    vocabulary = ["<pad>", "<unknown>", *known]
    place = {word: i for i, word in enumerate(vocabulary)}
    words = torch.full((len(texts), LONGEST), PAD)
    for row, sentence in enumerate(sentences):
        indices = [place.get(word, UNKNOWN) for word in sentence] or [UNKNOWN]
        words[row, : len(indices)] = torch.tensor(indices)
    lengths = torch.tensor([max(1, len(sentence)) for sentence in sentences])
    whole = Tweets(words, lengths, torch.tensor(labels), vocabulary)
    return whole.take(torch.from_numpy(train)), whole.take(torch.from_numpy(test))


def _csv(path: Path) -> Path:
    if is_file(path):
        return path
    folder = is_folder(path)
    files = sorted(path.glob("*.csv")) if folder else []
    if len(files) != 1:
        holds = f"{len(files)} CSV files there" if folder else "no such folder or file"
        raise UsageError(
            f"Sentiment140 is not in {path}: {holds}; give --data-dir the folder with Sentiment140's one "
            "CSV, or that file"
        )
    return files[0]


def _rows(path: Path) -> tuple[list[str], list[int]]:
    """Return the texts and labels of the sound rows."""
    texts, labels, broken, first = [], [], 0, ""
    try:
        with io.TextIOWrapper(opened(path), encoding="iso-8859-1", newline="") as file:
            rows = csv.reader(_lines(file))
            for row in rows:
                fields = row[-6:]  # a slice has a row index in front
                if len(row) in (6, 7) and fields[0] in CLASSES:
                    labels.append(CLASSES[fields[0]])
                    texts.append(fields[5])
                else:
                    broken += 1
                    first = first or (
                        f"line {rows.line_num}: {len(row)} fields, polarity "
                        f"{shown(fields[0] if row else '', 20)!r}"
                    )
    except (OSError, csv.Error) as error:
        raise UsageError(
            f"tweets: {path} cannot be read as CSV ({reason(error)}); give another file"
        ) from error
    if broken > BROKEN * (broken + len(texts)):
        share = f"{broken:,} of {broken + len(texts):,} rows of {path}"
        needs = "6 fields (or 7, a row index in front), polarity 0 or 4"
        raise UsageError(f"tweets: {share} are broken, more than 1% ({first}); a row has {needs}")
    if broken and place().rank == 0:
        print(
            f"tweets: {broken:,} broken rows of {shown(path)} skipped ({first})", file=sys.stderr, flush=True
        )
    return texts, labels


def _lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file. Raises csv.Error for one that is longer than any row."""
    while line := file.readline(LINE + 1):
        if len(line) > LINE:
            raise csv.Error(f"a line is longer than {LINE:,} characters")
        yield line
