"""The switches by which PyTorch lets float32's products be TF32's, read and set. allow_tf32 can be set, but
not read where somebody has set one of the newer switches; those can be read always."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

CUDNN: Any = torch.backends.cudnn
SWITCHES = CUDNN.conv, CUDNN.rnn, torch.backends.cuda.matmul


def convolutions() -> bool:
    """Return whether convolutions may."""
    return bool(CUDNN.conv.fp32_precision == "tf32")


@contextlib.contextmanager
def allowed(tf32: bool) -> Iterator[None]:
    """Inside, convolutions and matrix products may, or none does; afterwards all is as it was."""
    before = [switch.fp32_precision for switch in SWITCHES]
    CUDNN.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        CUDNN.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before[0] == "tf32", before[2] == "tf32"
        for switch, value in zip(SWITCHES, before, strict=True):
            switch.fp32_precision = value
