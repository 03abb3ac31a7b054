"""Small pictures for fastbn.page, inside the page itself: grids of images as PNG, enlarged without blur."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from fastbn.page.page import Html, text

GAP = 1  # pixels between the images of a grid


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Return images (n, H, W, 3) or (n, H, W, 4) uint8 in rows of `columns`, as one (H', W', 4); what lies
    between is transparent."""
    n, height, width, depth = images.shape
    rows = -(-n // columns)
    pixels = np.zeros((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 4), np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        pixels[y : y + height, x : x + width, :depth] = image
        if depth == 3:
            pixels[y : y + height, x : x + width, 3] = 255
    return pixels


def png(image: np.ndarray) -> bytes:
    """Return (H, W, 4) uint8, red green blue alpha, as a PNG file."""
    height, width, _ = image.shape
    # each begins with its filter: none
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], 1)
    parts = [
        ("IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)),
        ("IDAT", zlib.compress(rows.tobytes(), 9)),
        ("IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name.encode(), body) for name, body in parts)


def picture(image: np.ndarray, said: str) -> Html:
    """Return an image (H, W, 4) uint8 as wide as its figure; `said` stands for it where it can't be seen."""
    encoded = base64.b64encode(png(image)).decode()
    return Html(
        f'<img class="pixels" alt="{text(said)}" width="{image.shape[1]}" '
        f'src="data:image/png;base64,{encoded}" />'
    )


def rows(pictures: Sequence[tuple[str, Html]]) -> Html:
    """Return pictures under each other, the name of each before it."""
    return Html(
        "".join(f'<p class="note row">{text(name)}</p>{picture_of_row}' for name, picture_of_row in pictures)
    )


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
