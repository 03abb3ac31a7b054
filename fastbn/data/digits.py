"""The embedded data set: 1,797 real handwritten digits, 8×8 scans enlarged to 32×32. See DIGITS.md for the
source."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
from importlib.resources import as_file, files

import numpy as np
import torch

from fastbn import draws
from fastbn.data.images import Images
from fastbn.errors import UsageError
from fastbn.files import read, reason

TRAIN = 1_437  # of 1,797; the other 360 are the test set
MEAN, STD = 0.3055, 0.3241  # of the training images' pixels in [0, 1]; grey, so the same for each channel
SCALE = 4
SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"  # of digits.csv.gz


def load_digits() -> tuple[Images, Images]:
    """Return (train, test): 1,437 and 360 images of 32×32, always the same ones. Shifts only: a mirrored
    digit is another sign."""
    images, labels = _decoded(_published())
    whole = Images(
        images,
        labels,
        tuple("0123456789"),
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        name="digits",
        flip=False,
        pad=4,
        default_epochs=15,
    )
    order = draws.permutation(0, "digits/split", len(whole))
    return whole.take(order[:TRAIN]), whole.take(order[TRAIN:])


@functools.lru_cache(maxsize=1)  # some MB, for the next run of this process
def _decoded(content: bytes) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images (1797, 32, 32, 3), uint8, and labels (1797,), which nobody writes to."""
    # (1797, 65): 64 levels of ink, 0 … 16, and the digit
    table = np.loadtxt(io.StringIO(gzip.decompress(content).decode()), delimiter=",")
    images = torch.from_numpy(_enlarge(table[:, :64].reshape(-1, 8, 8)))[..., None].repeat(1, 1, 1, 3)
    return images, torch.from_numpy(table[:, 64].astype(np.int64))


def _published() -> bytes:
    """Return the file's bytes. Raises UsageError where they are not as they were published."""
    try:
        with as_file(files("fastbn.data").joinpath("digits.csv.gz")) as path:
            content = read(path, 1 << 20)
        damage = "" if hashlib.sha256(content).hexdigest() == SHA256 else "its SHA-256 is another"
    except OSError as error:
        damage = reason(error)
    if damage:
        raise UsageError(
            f"the digits that come with fastbn, digits.csv.gz, are damaged ({damage}); install fastbn again"
        )
    return content


def _enlarge(levels: np.ndarray) -> np.ndarray:
    """Enlarge (n, 8, 8) levels 0 … 16 to (n, 32, 32) uint8, bilinear, pixel centres aligned; exact, so the
    same bytes everywhere.

    The weights are eighths: with them as integers every sum is a whole number of at most 8·8·16, and the last
    step rounds it."""
    side = levels.shape[1]
    # of each new pixel, in old pixels
    centre = np.clip((np.arange(side * SCALE) + 0.5) / SCALE - 0.5, 0, side - 1)
    low = np.minimum(centre.astype(int), side - 2)
    weights = np.zeros((side * SCALE, side))
    weights[np.arange(len(centre)), low] = 8 * (low + 1 - centre)
    weights[np.arange(len(centre)), low + 1] = 8 * (centre - low)
    return np.floor((weights @ levels @ weights.T) * 255 / 1024 + 0.5).astype(np.uint8)
