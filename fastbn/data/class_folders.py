"""A user's own images: DIR/train/CLASS/*.png and DIR/test/CLASS/*.png (or DIR/val), read whole into
memory."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastbn.data.folder_listing import class_folders
from fastbn.data.image_file import MOST_BYTES, check_pixels, open_image, rgb
from fastbn.data.images import Images
from fastbn.errors import MachineError, UsageError
from fastbn.files import is_folder, opened, reason

LONG = 5_000  # images from which reading them is worth a word
# pixels above which images are decoded one at a time: 16 threads would take 10 GB for the largest
LARGE = 1 << 22


def read_folder(data_dir: str | Path, size: int = 32) -> tuple[Images, Images]:
    """Return (train, test) of class folders: RGB, the shorter side resized to `size`, the centre cut out
    square.

    Raises UsageError, naming the file or folder, for a broken image, an empty class, none, or classes that
    differ."""
    if size < 1:
        raise UsageError(f"the image size must be at least 1 pixel, got {size}")
    root = Path(data_dir)
    train_dir, test_dir = root / "train", _test_dir(root)
    train, test = class_folders(train_dir, test_dir)
    return _read(train_dir, train, size, root.resolve().name), _read(
        test_dir, test, size, root.resolve().name
    )


def _test_dir(root: Path) -> Path:
    for name in ("test", "val"):
        if is_folder(root / name):
            return root / name
    raise UsageError(
        f"{root} holds no folder test or val; lay the images out as {root}/train/CLASS/*.png and "
        f"{root}/test/CLASS/*.png"
    )


def _read(where: Path, listing: dict[str, list[str]], size: int, name: str) -> Images:
    paths = [where / group / file for group, files in listing.items() for file in files]
    labels = [label for label, group in enumerate(listing.values()) for _ in group]
    needed, memory = len(paths) * size * size * 3, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        sizes = f"{needed / 1e9:.0f} GB, this machine has {memory / 1e9:.0f}"
        raise MachineError(
            f"{len(paths):,} images of {size}×{size} need {sizes}; reduce the size or their number"
        )
    image_module = pillow()
    images = torch.empty(len(paths), size, size, 3, dtype=torch.uint8)

    def read(k: int) -> None:
        images[k] = _load(image_module, paths[k], size)

    terminal = sys.stderr.isatty()
    if len(paths) >= LONG and not terminal:
        print(f"reading {len(paths):,} images from {where}", file=sys.stderr, flush=True)
    # Pillow decodes outside the interpreter's lock
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        # of images that are refused here
        warnings.simplefilter("ignore", image_module.DecompressionBombWarning)
        bar = tqdm(
            pool.map(read, range(len(paths))),
            total=len(paths),
            desc=str(where),
            disable=len(paths) < LONG or not terminal,
        )
        try:
            for _ in bar:
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Images(images, labels, tuple(listing), name=name, flip=True, pad=size // 8, default_epochs=160)


def pillow() -> Any:
    """Return PIL.Image; MachineError where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise MachineError(
            "reading image files needs Pillow, which is not installed; run: pip install 'fastbn[images]'"
        ) from None
    return Image


_large = threading.Lock()


def _load(image_module: Any, path: Path, size: int) -> torch.Tensor:
    """Return an image as (size, size, 3) uint8."""
    try:
        with opened(path, MOST_BYTES) as file, open_image(file) as image:
            width, height = image.size
            check_pixels(width, height)
            scale = size / min(width, height)
            width, height = max(size, round(width * scale)), max(size, round(height * scale))
            check_pixels(width, height, f"with {size} pixels on its shorter side the image has")
            with (
                _large
                if max(width * height, image.size[0] * image.size[1]) > LARGE
                else contextlib.nullcontext()
            ):
                whole = rgb(image).resize((width, height), image_module.Resampling.BILINEAR)
            left, top = (width - size) // 2, (height - size) // 2
            pixels = bytearray(whole.crop((left, top, left + size, top + size)).tobytes())
    except MemoryError:
        raise
    except Exception as error:  # each format's decoder raises its own
        kind = "" if isinstance(error, (UsageError, OSError)) else f"{type(error).__name__}: "
        raise UsageError(
            f"{path} cannot be read as an image ({kind}{reason(error)}); repair or remove it"
        ) from None
    return torch.frombuffer(pixels, dtype=torch.uint8).view(size, size, 3)
