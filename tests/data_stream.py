"""Tiny ImageNets in both layouts: odd sizes and modes, each image unlike all others."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="needs Pillow, the extra fastbn[images]")

CLASSES = ("ant", "bee", "cow")
# width, height: smaller and larger than 2·16, long ones
SIZES = [(40, 33), (64, 48), (31, 90), (120, 25), (16, 16), (200, 151), (9, 7)]


def content(k: int, kind: str = "JPEG") -> bytes:
    """Return an image file: smooth, with a colour of its own; every fifth grey, every seventh CMYK."""
    width, height = SIZES[k % len(SIZES)]
    draw = np.random.default_rng(k)
    image = Image.fromarray(draw.integers(0, 256, (4, 5, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    mode = "L" if k % 5 == 3 else "CMYK" if k % 7 == 4 and kind == "JPEG" else "RGB"
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def folders(root: Path, train: int = 30, val: int = 11) -> Path:
    """Class folders, of both suffixes."""
    for split, n in (("train", train), ("val", val)):
        for k in range(n):
            suffix, kind = (".png", "PNG") if k % 9 == 5 else (".JPEG", "JPEG")
            path = root / split / CLASSES[k % 3] / f"{k:04d}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(k if split == "train" else 100 + k, kind))
    return root


def shard(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def samples(first: int, n: int, offset: int = 0) -> dict[str, bytes]:
    """Return the members of n samples, each with a file besides that nothing reads."""
    members = {}
    for k in range(first, first + n):
        suffix, kind = ("png", "PNG") if k % 9 == 5 else ("JPG" if k % 9 == 2 else "jpeg", "JPEG")
        members |= {
            f"s{k:05d}.json": b"{}",
            f"s{k:05d}.cls": str(k % 3).encode(),
            f"s{k:05d}.{suffix}": content(offset + k, kind),
        }
    return members


def shards(root: Path, counts: tuple[int, ...] = (8, 5, 9, 8), val: int = 11) -> Path:
    """Shards that hold the images that `folders` holds, in the order of their numbers."""
    first = 0
    for k, n in enumerate(counts):
        shard(root / f"imagenet-train-{k:06d}.tar", samples(first, n))
        first += n
    shard(root / "imagenet-val-000000.tar", samples(0, val, 100))
    return root
