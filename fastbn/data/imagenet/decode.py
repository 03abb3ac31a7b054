"""An image file's bytes -> the pixels that its crop needs, uint8 RGB.

A box whose shorter side has more than twice the pixels that the network takes is reduced to that here,
antialiased (a JPEG already while it is decoded, by libjpeg's 1/2, 1/4, 1/8): so a sample is at most 0.76 MB
on its way to a network of 224×224, however large the photograph, and bilinear sampling on the device, which
reads two pixels a side, leaves none out. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastbn.data.image_file import check_pixels, open_image, rgb
from fastbn.data.imagenet.crops import REDUCTION, Crop

View = Callable[[int, int, int], Crop]  # (sample, height, width) -> its crop


class ImagePart(NamedTuple):
    """The pixels of a crop's region, and the box within them."""

    pixels: np.ndarray  # (h, w, 3) uint8
    box: tuple[float, float, float, float]  # top, left, height, width
    flip: bool


def decode(content: bytes, sample: int, view: View, size: int) -> ImagePart:
    """Return the part of the image that `view` gives to the sample. Raises what the image's decoder raises,
    and UsageError for an image that is larger than any is read."""
    from PIL import Image  # an extra: whoever streams nothing needs none

    with open_image(io.BytesIO(content)) as opened:
        width, height = opened.size
        (top, left, tall, wide), (first, start, rows, columns), flip = view(sample, height, width)
        factor = min(tall, wide) / (REDUCTION * size)
        if factor > 1:
            # before the first pixel: a JPEG is decoded smaller
            opened.draft(None, (int(width / factor), int(height / factor)))
        check_pixels(*opened.size)
        image = opened if opened.mode == "RGB" else rgb(opened)
        if factor <= 1:
            pixels = image.crop((start, first, start + columns, first + rows))
            return ImagePart(np.asarray(pixels), (top - first, left - start, tall, wide), flip)
        x, y = image.size[0] / width, image.size[1] / height  # what drafting left
        new = max(1, round(columns / factor)), max(1, round(rows / factor))
        region = (start * x, first * y, (start + columns) * x, (first + rows) * y)
        pixels = image.resize(new, Image.Resampling.BILINEAR, box=region)
        x, y = new[0] / columns, new[1] / rows
        return ImagePart(
            np.asarray(pixels), ((top - first) * y, (left - start) * x, tall * y, wide * x), flip
        )
