"""Whether float32's products may be TF32's: read where allow_tf32 can't be, and put back."""

from __future__ import annotations

import pytest
import torch

from fastbn.engine.triton import tf32


@pytest.fixture(autouse=True)
def as_before():
    with tf32.allowed(True):
        yield


def state() -> list[str]:
    return [switch.fp32_precision for switch in tf32.SWITCHES]


def test_it_is_what_was_set():
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        assert tf32.convolutions() == allowed
        with tf32.allowed(not allowed):
            assert (
                tf32.convolutions()
                == torch.backends.cudnn.allow_tf32
                == torch.backends.cuda.matmul.allow_tf32
                == (not allowed)
            )
        assert tf32.convolutions() == torch.backends.cudnn.allow_tf32 == allowed


@pytest.mark.parametrize("allowed", [False, True])
def test_the_newer_switches_are_put_back(allowed):
    """With one of them set allow_tf32 can't be read any more."""
    tf32.CUDNN.conv.fp32_precision = "ieee"
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        _ = torch.backends.cudnn.allow_tf32
    before = state()
    with tf32.allowed(allowed):
        assert tf32.convolutions() == torch.backends.cudnn.allow_tf32 == allowed
    assert state() == before and not tf32.convolutions()
