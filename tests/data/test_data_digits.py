"""The embedded digits: real, always the same bytes, with the constants they are said to have."""

import gzip
import hashlib
from importlib.resources import files

import numpy as np
import torch

from fastbn.data.digits import _enlarge, load_digits


def test_the_sets_and_their_settings():
    train, test = load_digits()
    for images, count in ((train, 1437), (test, 360)):
        assert images.images.shape == (count, 32, 32, 3) and images.classes == tuple("0123456789")
        assert (images.name, images.flip, images.pad, images.default_epochs) == ("digits", False, 4, 15)
        assert (images.images == images.images[..., :1]).all()  # grey
        assert images.labels.bincount().min() > 0.07 * count  # the fixed split leaves no class short


def test_the_same_bytes_everywhere():
    digests = [
        hashlib.sha256(part.images.numpy().tobytes() + part.labels.numpy().tobytes()).hexdigest()[:16]
        for part in load_digits()
    ]
    assert digests == ["1cb15e662fb3d077", "f11dd6bb9e4bb879"]


def test_the_parts_share_no_image_and_make_up_the_file():
    train, test = load_digits()
    together = torch.cat([train.images, test.images])[..., 0].flatten(1).numpy()
    table = np.array([line.split(b",") for line in gzip.decompress(_packed()).split()], float)
    whole = _enlarge(table[:, :64].reshape(-1, 8, 8)).reshape(len(table), -1)
    assert len(whole) == 1797
    assert sorted(map(bytes, together)) == sorted(map(bytes, whole))


def test_mean_and_std_are_the_training_sets():
    train, _ = load_digits()
    pixels = train.images.double() / 255
    assert np.allclose(train.mean, pixels.mean((0, 1, 2)), atol=5e-5)
    assert np.allclose(train.std, pixels.std((0, 1, 2), correction=0), atol=5e-5)


def test_enlarged_as_bilinear_interpolation():
    levels = np.random.default_rng(0).integers(0, 17, (5, 8, 8)).astype(float)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(levels)[:, None] * 255 / 16, scale_factor=4, mode="bilinear"
    )[:, 0]
    assert np.abs(_enlarge(levels) - expected.numpy()).max() <= 0.5 + 1e-9  # rounded to the nearest byte
    for level, byte in ((0, 0), (16, 255)):  # white and ink stay what they are
        assert (_enlarge(np.full((1, 8, 8), float(level))) == byte).all()


def test_a_linear_rule_tells_them_apart():
    """Images and labels belong together: nearest class mean is right nine times in ten, chance once."""
    train, test = load_digits()
    means = torch.stack([train.images[train.labels == k].float().mean(0) for k in range(10)]).flatten(1)
    guess = torch.cdist(test.images.float().flatten(1), means).argmin(1)
    assert (guess == test.labels).float().mean() > 0.85


def _packed():
    return files("fastbn.data").joinpath("digits.csv.gz").read_bytes()


def test_the_source_is_named():
    text = files("fastbn.data").joinpath("DIGITS.md").read_text()
    assert "Alpaydin" in text and "Kaynak" in text and "CC BY 4.0" in text
