"""ImageNet as class folders: DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG (or DIR/test)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fastbn.data.folder_listing import class_folders
from fastbn.data.imagenet.source import SampleSource
from fastbn.files import is_folder


def read_folders(root: Path) -> tuple[SampleSource, SampleSource]:
    """Return (train, val). Classes are the folders' names in alphabetical order. Raises UsageError as
    read_folder does."""
    test_dir = next((root / name for name in ("val", "test") if is_folder(root / name)), root / "val")
    train, test = class_folders(root / "train", test_dir)
    return _source(root / "train", train), _source(test_dir, test)


def _source(folder: Path, listing: dict[str, list[str]]) -> SampleSource:
    names = [os.fsencode(os.path.join(group, name)) for group, files in listing.items() for name in files]
    labels = np.repeat(np.arange(len(listing)), [len(files) for files in listing.values()])
    return SampleSource("class folders", folder, tuple(listing), np.array(names), labels)
