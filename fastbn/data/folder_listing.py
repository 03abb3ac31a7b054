"""The layout DIR/SPLIT/CLASS/*.png: which image files each class has, and what else lies there and is not
read."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

from fastbn.errors import UsageError
from fastbn.files import is_folder
from fastbn.machine.environment import place

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
BESIDE = (
    ".txt",
    ".md",
    ".csv",
    ".tsv",
    ".json",
    ".xml",
    ".yaml",
    ".yml",
    ".ini",
    ".db",
)  # notes that lie beside images: left out unsaid
NAMED = 5  # kinds of files that are named


def class_folders(train_dir: Path, test_dir: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the names of the image files of each class in either folder, classes and files in alphabetical
    order.

    What is neither an image of these SUFFIXES nor a note is counted by its kind on stderr. Raises UsageError
    for a folder or class without images, and for classes that differ.
    """
    train, test = _listing(train_dir), _listing(test_dir)
    if train.keys() != test.keys():
        alone = sorted(train.keys() ^ test.keys())[0]
        where, other = (train_dir, test_dir) if alone in train else (test_dir, train_dir)
        raise UsageError(
            f"{train_dir} and {test_dir} must hold the same classes: {where / alone} has no counterpart in "
            f"{other}"
        )
    return train, test


def _listing(folder: Path) -> dict[str, list[str]]:
    if not is_folder(folder):
        raise UsageError(f"{folder} is not there; lay the images out as {folder}/CLASS/*.png")
    listing: dict[str, list[str]] = {}
    skipped: Counter[str] = Counter()
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            if entry.suffix.lower() not in BESIDE:
                skipped["beside the class folders"] += 1
            continue
        names, others = [], Counter[str]()
        for name in os.listdir(entry):
            if name.startswith("."):
                continue
            if name.lower().endswith(SUFFIXES):
                names.append(name)
            elif (kind := _kind(entry / name)) not in BESIDE:
                others[kind] += 1
        if not names:
            has = f", but {_counted(others)}" if others else ""
            raise UsageError(
                f"{entry} holds no image ({', '.join(SUFFIXES)}){has}; add some or remove the folder"
            )
        listing[entry.name] = sorted(names)
        skipped += others
    if not listing:
        raise UsageError(f"{folder} holds no class folders; lay the images out as {folder}/CLASS/*.png")
    if skipped and place().rank == 0:
        what = f"fastbn: skipped {skipped.total():,} in {folder} ({_counted(skipped)})"
        print(
            f"{what}: images are {', '.join(SUFFIXES)} files in {folder}/CLASS", file=sys.stderr, flush=True
        )
    return listing


def _kind(path: Path) -> str:
    """Return what a file is called by that is no image: its suffix."""
    if path.is_dir():
        return "folders"
    return path.suffix.lower()[:12] or "without a suffix"


def _counted(kinds: Counter[str]) -> str:
    """Return the kinds with their numbers, the most frequent first."""
    names = [
        f"{kind}: {count:,}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    ]
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
