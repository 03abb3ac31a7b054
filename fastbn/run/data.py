"""The data set that settings ask for, cut and prepared as they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastbn.data.datasets import Loaded, load
from fastbn.data.imagenet.stream import Stream
from fastbn.data.images import Images
from fastbn.data.names import DEFAULT_DIR, IMAGE_SIZE
from fastbn.errors import UsageError
from fastbn.files import shown
from fastbn.settings.config import Config, follows


def data(config: Config, family: str, may_download: bool = True) -> Loaded:
    """Return the data set for networks of this family. may_download: into the default folder, or with
    --download. Raises UsageError where it is missing, or can't be prepared so."""
    default_dir = (
        DEFAULT_DIR if may_download else None
    )  # the one folder that is downloaded into without being asked
    loaded = load(
        config.dataset,
        config.data_dir or DEFAULT_DIR,
        config.download and may_download,
        IMAGE_SIZE.get(family, 32),
        default_dir,
        config.rank_timeout,
    )
    train, test = loaded.train.limit(config.limit_train), loaded.test.limit(config.limit_test)
    if config.augment is not None or config.pixels != "standard":
        if not (isinstance(train, Images) and isinstance(test, Images)):
            raise UsageError(
                f"--augment and --pixels are of images in memory, and {train.name} is not that; leave them "
                "out"
            )
        train, test = (images.prepared(config.augment, config.pixels) for images in (train, test))
    return dataclasses.replace(loaded, train=train, test=test)


def test_set(
    settings: Mapping[str, Any],
    family: str,
    where: object,
    dataset: str | None = None,
    data_dir: str | None = None,
    limit: int | None = None,
    may_download: bool = True,
) -> Images | Stream:
    """Return the test set of a saved run with these settings: its own, as far as the run was tested on it, or
    another that is named.

    where: the run, for a message. data_dir: where the data lie now. limit: look at this many images. Raises
    UsageError as `data`, and where the run does not say what it was trained on, or read it from a folder that
    is not named again: what a file says is never opened."""
    name = dataset or settings.get("dataset")
    if name is None:
        raise UsageError(f"{where} does not say what it was trained on; name it with --dataset")
    as_trained = name == settings.get("dataset")
    if as_trained and data_dir is None and follows("data_dir", settings):
        raise UsageError(
            f"{where}: its data were read from {shown(settings['data_dir'], 120)}, and what a file says is "
            "never opened; give --data-dir"
        )
    config = Config(
        dataset=name,
        data_dir=data_dir,
        limit_test=settings.get("limit_test") if as_trained and limit is None else None,
        pixels=settings.get("pixels", "standard"),
    )
    return data(config, family, may_download).test.limit(limit)
