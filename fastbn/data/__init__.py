"""Labelled images on a device, and the data sets that come with a name.

    from fastbn.data import Images, load
    loaded = load("auto", "data")            # CIFAR-10 where it is or can be had, else the embedded digits
    loaded.train, loaded.test, loaded.why

Public names are handed on lazily: importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastbn.data.names import DATASETS, DEFAULT_DIR

if TYPE_CHECKING:
    from fastbn.data.augment import Epoch, batch, draw_epoch
    from fastbn.data.datasets import Loaded, load
    from fastbn.data.imagenet.stream import Stream, read_imagenet
    from fastbn.data.images import Images

__all__ = [
    "DATASETS",
    "DEFAULT_DIR",
    "Epoch",
    "Images",
    "Loaded",
    "Stream",
    "batch",
    "draw_epoch",
    "load",
    "read_imagenet",
]

_HOME = {
    **dict.fromkeys(("Epoch", "batch", "draw_epoch"), "augment"),
    **dict.fromkeys(("Loaded", "load"), "datasets"),
    **dict.fromkeys(("Stream", "read_imagenet"), "imagenet.stream"),
    "Images": "images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
