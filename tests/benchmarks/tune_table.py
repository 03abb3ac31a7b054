"""What the tests of bench.tune share, on a machine without a GPU."""

from __future__ import annotations

import json

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip(
        "it would measure this GPU for minutes; bench/gpu_check.sh is for that", allow_module_level=True
    )


from bench.oracle.operations import Case
from fastbn.kernels.triton.conv import Tile

CONV = Case("", 2, 6, 6, 16, 16).conv()


TILE = Tile(64, 32, 32, 4, 1)


def kept(table):
    return json.loads(table.path.read_text(encoding="utf-8"))


class Same:
    """Candidates that all give the same, where nothing of a kernel's is asked."""

    dtype = torch.float16

    def __init__(self, *arguments):
        pass

    def __call__(self, candidate):
        return lambda: torch.ones(2)
