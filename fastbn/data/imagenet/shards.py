"""ImageNet as WebDataset shards: DIR/imagenet-train-000000.tar … and DIR/imagenet-val-000000.tar …, any names
with those words.

A sample is the neighbouring members of one name: its image (jpg, jpeg, png) and its class (cls, an integer),
grouped by the webdataset package's own rules. Whatever else it has is left alone."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastbn.data.classes import FEW, most_classes, rule
from fastbn.data.imagenet.broken import Broken
from fastbn.data.imagenet.index import load_index, save_index
from fastbn.data.imagenet.members import LABEL, Member
from fastbn.data.imagenet.pool import Crew
from fastbn.data.imagenet.source import SampleSource
from fastbn.data.imagenet.worker import Members
from fastbn.errors import MachineError, UsageError
from fastbn.files import shown

SPLITS = ("train",), ("val", "validation", "test")
LONG = 20  # shards from which reading their headers is worth a word
IMAGES = ("jpg", "jpeg", "png")
LARGEST = (1 << 63) - 1  # label that an index holds; it is refused, as any that is far too large


def find_shards(root: Path) -> tuple[list[str], list[str]]:
    """Return the names of the training shards in `root`, and of the others: those of val, else validation,
    else test."""
    names = sorted(path.name for path in root.glob("*.tar"))
    train, test = (
        next(
            (
                matching
                for word in words
                if (matching := [name for name in names if word in re.split(r"[^a-z]+", name.lower())])
            ),
            [],
        )
        for words in SPLITS
    )
    return train, test


def read_shards(root: Path, crew: Crew) -> tuple[SampleSource, SampleSource]:
    """Return (train, val). Every header is read once, by the workers; the index is then kept in the cache
    folder.

    Raises UsageError where one of the two has no shards or too many samples that lack an image or a class,
    and for a class that is not below 1,000 or 32 times the number of different ones."""
    names = find_shards(root)
    for what, shards in zip(("train", "val"), names, strict=True):
        if not shards:
            raise UsageError(
                f"{root} holds no shards of the {what} set; put {root}/imagenet-{what}-000000.tar … there"
            )
    read = [_read(root, shards, crew) for shards in names]
    classes = tuple(f"class {k}" for k in range(_known(read)))
    train, test = (_with(source, classes) for source in read)
    return train, test


def _known(sources: list[SampleSource]) -> int:
    """Return how many classes the labels stand for."""
    labels = torch.from_numpy(np.concatenate([source.labels for source in sources]))
    highest = int(labels.max())
    if highest >= FEW and highest >= most_classes(labels):
        source = next(source for source in sources if (source.labels == highest).any())
        sample = source.describe(int(source.labels.argmax()))
        raise UsageError(
            f"the class of {sample} is {highest:,}, and must be {rule(labels)}; mend it, or renumber the "
            "classes from 0"
        )
    return highest + 1


def _with(source: SampleSource, classes: tuple[str, ...]) -> SampleSource:
    fields = {name: getattr(source, name) for name in ("files", "labels", "shard", "start", "size", "keys")}
    return SampleSource(source.layout, source.root, classes, **fields)


def _read(root: Path, names: list[str], crew: Crew) -> SampleSource:
    index = load_index(root, names)
    if index is None:
        index = _scan(root, names, crew)
        save_index(root, names, index)
    broken = Broken(len(index["labels"]) + len(index["broken"]), f"samples and shards of {root / names[0]} …")
    for line in index["broken"].tolist():
        name, _, reason = line.partition(": ")
        broken.note(name, reason)
    broken.say(set())
    arrays = {name: index[name] for name in ("labels", "shard", "start", "size", "keys")}
    return SampleSource(
        "WebDataset shards", root, (), np.array([os.fsencode(name) for name in names]), **arrays
    )


def _scan(root: Path, names: list[str], crew: Crew) -> dict[str, np.ndarray]:
    try:
        from webdataset.tariterators import group_by_keys as group
    except ImportError:
        raise MachineError(
            "WebDataset shards need webdataset, which is not installed; run: pip install 'fastbn[webdataset]'"
        ) from None
    if len(names) >= LONG:
        print(
            f"fastbn: reading the headers of {len(names):,} shards in {root}, this once",
            file=sys.stderr,
            flush=True,
        )
    pool = crew.take()
    jobs = [pool.submit(Members(str(root / name))) for name in names]
    rows: list[tuple[int, int, int, int, bytes]] = []
    broken: list[str] = []
    for k, (name, job) in enumerate(zip(names, jobs, strict=True)):
        listed, wrong = pool.result(job)
        if wrong:
            broken.append(f"{root / name}: {wrong}; {len(listed):,} members before that are used")
        for key, image, label in _samples(group, listed):
            if isinstance(image, Member) and isinstance(label, int):
                rows.append((label, k, image.start, image.size, os.fsencode(key)))
            # the sample that the shard is cut off in is part of that line
            elif not wrong or key != _last(listed):
                broken.append(
                    f"{shown(key)} in {root / name}: {'no class' if image else 'no jpg, jpeg or png'}"
                )
    crew.put_back(pool)
    if not rows:
        example = f" ({broken[0]})" if broken else ""
        raise UsageError(
            f"{root / names[0]} … hold no sample with an image (jpg, jpeg, png) and a class (cls, an "
            f"integer){example}"
        )
    kinds = {"labels": np.int64, "shard": np.int32, "start": np.int64, "size": np.int64, "keys": None}
    index = {
        name: np.array(column, kind)
        for (name, kind), column in zip(kinds.items(), zip(*rows, strict=True), strict=True)
    }
    return index | {"broken": np.array(broken, dtype=str)}


def _samples(group: Callable[..., Any], listed: list[Member]) -> list[tuple[str, Member | None, int | None]]:
    """Return (key, image, class) of each sample in a shard, None for what it lacks."""
    files = ({"fname": member.name, "data": member, "__url__": ""} for member in listed)
    return [
        (
            sample["__key__"],
            next((sample[kind] for kind in IMAGES if kind in sample), None),
            _label(sample.get(LABEL)),
        )
        for sample in group(files, handler=lambda error: True)  # of a name that comes twice the first counts
    ]


def _label(member: Any) -> int | None:
    text = member.text.strip() if member is not None else b""
    return min(int(text), LARGEST) if text.isdigit() else None


def _last(listed: list[Member]) -> str:
    """Return the key of the last sample."""
    return re.sub(r"[.][^/]*$", "", listed[-1].name) if listed else ""
