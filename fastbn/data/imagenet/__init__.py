"""Image sets that fit neither in memory nor on the device, streamed: read and decoded in processes of their
own, cropped by the device.

    from fastbn.data.imagenet import read_imagenet
    train, test = read_imagenet("imagenet")      # class folders or WebDataset shards

    folders, shards, members, index   where each sample's bytes lie: a Source, of either layout
    crops     which part of an image a sample is, drawn by (seed, epoch, sample)
    decode    that part as bytes;   worker, pool   done in many processes
    reading   the batches of an epoch, in order, broken images replaced;   broken   which are counted and
    named
    upload, resample   a batch of ragged images, copied while the step before runs, brought to one size
    stream    the feed made of all that

Public names are handed on lazily: a worker process imports this package and no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastbn.data.imagenet.stream import Stream, read_imagenet

__all__ = ["Stream", "read_imagenet"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastbn.data.imagenet import stream

    return getattr(stream, name)


def __dir__() -> list[str]:
    return sorted(__all__)
