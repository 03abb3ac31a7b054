"""The ways in which engines run a convolution, each under the name that people read."""

from __future__ import annotations

import enum


class Algorithm(str, enum.Enum):
    """How a convolution runs. The value is what `explain` prints and what records and tables hold.

    >>> Algorithm("rolling rows") is Algorithm.ROLLING
    True
    >>> f"{Algorithm.WINOGRAD_4}: {Algorithm.WINOGRAD_4.products} of the products"
    'Winograd F(4×4, 3×3): 0.25 of the products'
    """

    TORCH = "torch's conv2d"
    DIRECT = "direct"
    RAW = "direct, weights not packed"
    WINOGRAD_2 = "Winograd F(2×2, 3×3)"
    WINOGRAD_4 = "Winograd F(4×4, 3×3)"
    WINOGRAD_2_RAW = "Winograd F(2×2, 3×3), weights transformed at every step"
    WINOGRAD_4_RAW = "Winograd F(4×4, 3×3), weights transformed at every step"
    ROLLING = "rolling rows"
    TAPS = "tap by tap"
    LIBRARY = "the library's, BatchNorm in passes beside it"

    def __str__(self) -> str:
        return self.value

    @property
    def products(self) -> float:
        """Return the products made for each product of the convolution's definition."""
        return _PRODUCTS[self]


_PRODUCTS = {
    Algorithm.TORCH: 1.0,
    Algorithm.DIRECT: 1.0,
    Algorithm.RAW: 1.0,
    Algorithm.WINOGRAD_2: 4 / 9,
    Algorithm.WINOGRAD_4: 1 / 4,
    Algorithm.WINOGRAD_2_RAW: 4 / 9,
    Algorithm.WINOGRAD_4_RAW: 1 / 4,
    Algorithm.ROLLING: 4 / 3,
    Algorithm.TAPS: 1.0,
    Algorithm.LIBRARY: 1.0,
}
