"""The part of an image that a sample is. What is drawn depends on (seed, epoch, sample) alone: not on batch,
worker or rank.

Imports no torch: workers decide this, so that only that part is kept of what they decode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastbn import draws

SCALE = (0.1, 1.0)  # of the image's area
RATIO = (0.8, 1.25)  # width to height
TRIES = 10
UNIFORMS = 2 * TRIES + 3  # an area and a ratio a try, the place, the mirroring
REDUCTION = 2  # bilinear sampling reads two pixels a side: up to this reduction none is left out


class Crop(NamedTuple):
    """A box of an image in pixels, (top, left, height, width), what must be known of the image for it, and
    whether it is mirrored."""

    box: tuple[float, float, float, float]
    # top, left, height, width: the pixels that bilinear sampling of the box may read
    region: tuple[int, int, int, int]
    flip: bool


@dataclass(frozen=True)
class RandomCrop:
    """Training: a box of 10% to 100% of the area, its ratio log-uniform in 4:5 to 5:4, brought to size ×
    size; mirrored or not."""

    seed: int
    epoch: int
    size: int

    def __call__(self, sample: int, height: int, width: int) -> Crop:
        u = draws.uniform(self.seed, f"epoch/{self.epoch}/crop/{sample}", UNIFORMS).tolist()
        box = random_box(u, height, width)
        return Crop(box, box, u[-1] >= 0.5)


@dataclass(frozen=True)
class CentreCrop:
    """Evaluation: the shorter side brought to 8/7 of the size (224: 256), the centre size × size."""

    size: int

    def __call__(self, sample: int, height: int, width: int) -> Crop:
        top, tall = self._span(height, min(height, width))
        left, wide = self._span(width, min(height, width))
        first, start = max(0, math.floor(top) - 1), max(0, math.floor(left) - 1)
        last, end = min(height, math.ceil(top + tall) + 1), min(width, math.ceil(left + wide) + 1)
        return Crop((top, left, tall, wide), (first, start, last - first, end - start), False)

    def _span(self, side: int, shorter: int) -> tuple[float, float]:
        """Return where the crop starts and how long it is along a side, in pixels of the image; rounded where
        torchvision rounds."""
        resized = round(self.size * 8 / 7) * side // shorter
        return round((resized - self.size) / 2) * side / resized, self.size * side / resized


def random_box(u: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) from UNIFORMS numbers in [0, 1), as torchvision's
    RandomResizedCrop.get_params: the first of ten tries that fits, else the largest central box whose ratio
    is allowed."""
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for a, r in zip(u[0 : 2 * TRIES : 2], u[1 : 2 * TRIES : 2], strict=True):
        area, ratio = (
            height * width * (SCALE[0] + a * (SCALE[1] - SCALE[0])),
            math.exp(low + r * (high - low)),
        )
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[2 * TRIES] * (height - h + 1)), int(u[2 * TRIES + 1] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def most_bytes(size: int) -> int:
    """Return the most bytes that one sample's region takes, whatever the image: its shorter side is at most
    REDUCTION·size, and a margin."""
    side = REDUCTION * size
    return 3 * (side + 4) * (math.ceil(side * RATIO[1]) + 4)
