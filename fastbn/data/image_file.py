"""An image file as RGB pixels of eight bits: which formats are opened, how large it may be, how modes are
converted.

Imports no torch and, until an image is read, no Pillow: the processes that decode import this module.
"""

from __future__ import annotations

import functools
from typing import IO, Any

import numpy as np

from fastbn.errors import UsageError

MOST_PIXELS = 1 << 26  # of one image, as it is decoded and as it is resized: 8,192 × 8,192
MOST_BYTES = 1 << 28  # of one image file
# what a file may hold, whatever its name ends in; Pillow knows more, and has Ghostscript run one of them
# (EPS)
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of FORMATS that the installed Pillow knows."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_image(file: IO[bytes]) -> Any:
    """Return the image in an open file, not decoded yet. Raises what Pillow raises."""
    from PIL import Image  # an extra: whoever reads no image files needs none

    return Image.open(file, formats=_formats())


def check_pixels(width: int, height: int, what: str = "the image is") -> None:
    """Raise UsageError for more pixels than one image may have."""
    if width * height > MOST_PIXELS:
        raise UsageError(f"{what} {width:,}×{height:,} pixels, and more than {MOST_PIXELS:,} are not read")


def rgb(image: Any) -> Any:
    """Return the opened image in mode RGB, decoded.

    Sixteen bits become eight by their range: 0 … 65535 to 0 … 255, rounded. Raises UsageError for 32-bit
    values, whose range no file says.
    """
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        values += 128
        values //= 257
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UsageError("the image holds 32-bit values, whose range is not known; store 8 or 16 bits")
    return image.convert("RGB")
