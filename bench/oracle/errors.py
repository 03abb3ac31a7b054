"""The distance of a result from what it should be."""

from __future__ import annotations

import math

from torch import Tensor


def relative(found: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """Return the norm-wise relative error, taken in float64; below a norm of `least` it turns absolute.

    It is infinite where a number is not finite or the shapes differ: a comparison can't pass over that, as it
    passes over a NaN."""
    if found.shape != expected.shape:
        return math.inf
    wide = expected.detach().double()
    error: float = ((found.detach().double() - wide).norm() / wide.norm().clamp(min=least)).item()
    return error if math.isfinite(error) else math.inf
