"""The batches of a stream, collected and compared."""

from __future__ import annotations

import torch

SIZE, BATCH = 16, 8  # batches of half a chunk


def collected(stream, size=BATCH, epoch=1, **more):
    stream.begin(3, epoch)
    return [stream.load(*inputs) for inputs in stream.batches(size, **more)]


def same(found, expected):
    assert len(found) == len(expected)
    for (x, labels), (other, others) in zip(found, expected, strict=True):
        assert torch.equal(x, other) and torch.equal(labels, others)
