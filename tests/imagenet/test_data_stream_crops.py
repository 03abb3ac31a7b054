"""Which part of an image a sample is: torchvision's rule, seeded by the sample; and never more bytes than
promised."""

import math

import numpy as np
import pytest
from data_stream import Image

from fastbn import draws
from fastbn.data.imagenet.crops import RATIO, TRIES, UNIFORMS, CentreCrop, RandomCrop, most_bytes, random_box
from fastbn.data.imagenet.decode import decode

SIZES = [(375, 500), (500, 333), (64, 64), (31, 90), (1, 1), (2, 900), (900, 2), (7, 5)]


def as_torchvision(u, height, width):
    """RandomResizedCrop.get_params of torchvision 0.24, its random numbers handed in."""
    numbers = iter(u)
    area = height * width
    log_ratio = [math.log(r) for r in (0.8, 1.25)]
    for _ in range(10):
        target = area * (0.1 + next(numbers) * (1.0 - 0.1))
        aspect = math.exp(log_ratio[0] + next(numbers) * (log_ratio[1] - log_ratio[0]))
        w = round(math.sqrt(target * aspect))
        h = round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            i, j = (math.floor(x * n) for x, n in zip(u[20:22], (height - h + 1, width - w + 1), strict=True))
            return i, j, h, w
    in_ratio = float(width) / float(height)
    if in_ratio < 0.8:
        w, h = width, round(width / 0.8)
    elif in_ratio > 1.25:
        h, w = height, round(height * 1.25)
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_boxes_are_torchvisions(height, width):
    fell_back = 0
    for k in range(300):
        u = draws.uniform(k, "u", UNIFORMS).tolist()
        box = random_box(u, height, width)
        assert box == as_torchvision(u, height, width)
        top, left, h, w = box
        assert top >= 0 and top + h <= height and left >= 0 and left + w <= width and h > 0 and w > 0
        fell_back += (h, w)[height > width] == (height, width)[height > width]
    assert (height, width) not in ((2, 900), (900, 2)) or fell_back > 100  # strips: hardly a try fits


def test_area_and_ratio_are_spread_as_asked():
    areas, ratios = [], []
    for k in range(4000):
        _, _, h, w = random_box(draws.uniform(k, "u", UNIFORMS).tolist(), 3000, 3000)
        areas.append(h * w / 9e6)
        ratios.append(w / h)
    assert (
        0.0999 < min(areas) < 0.11 and 0.8 * 0.999 < min(ratios) < 0.81 and 1.24 < max(ratios) < 1.25 * 1.001
    )
    # a try fits unless w or h exceeds the side, which keeps large areas rarer; below the largest that always
    # fits they are uniform
    small = [area for area in areas if area < 1 / RATIO[1]]
    assert abs(np.mean(small) - (0.1 + 0.8) / 2) < 5 * 0.2 / math.sqrt(len(small))
    assert abs(np.mean(np.log(ratios))) < 5 * 0.13 / math.sqrt(len(ratios))


def test_draws_belong_to_seed_epoch_and_sample():
    crops = [RandomCrop(s, e, 16)(i, 300, 400) for s in (0, 1) for e in (0, 1) for i in (0, 1, 10)]
    assert len(set(crops)) == len(crops)
    assert RandomCrop(0, 0, 16)(10, 300, 400) == crops[2]
    flips = [RandomCrop(0, 0, 16)(i, 300, 400).flip for i in range(2000)]
    assert abs(np.mean(flips) - 0.5) < 5 * 0.5 / math.sqrt(2000)
    assert RandomCrop(0, 0, 16)(5, 300, 400).box == RandomCrop(0, 0, 16)(5, 300, 400).region
    assert UNIFORMS == 2 * TRIES + 3


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [224, 15])
def test_the_centre_is_what_torchvision_cuts_out(height, width, size):
    (top, left, tall, wide), (first, start, rows, columns), flip = CentreCrop(size)(0, height, width)
    resize = {224: 256, 15: 17}[size]
    short, long = sorted((height, width))
    new = {short: resize, long: int(resize * long / short)}
    new[short] = resize
    expected = round((new[height] - size) / 2.0), round((new[width] - size) / 2.0)
    assert (top * new[height] / height, left * new[width] / width) == pytest.approx(expected, abs=1e-9)
    assert (tall * new[height] / height, wide * new[width] / width) == pytest.approx((size, size))
    assert not flip
    # bilinear sampling reads within half a pixel of the box
    assert first <= max(0, math.floor(top - 0.5)) and first + rows >= min(height, math.ceil(top + tall + 0.5))
    assert start <= max(0, math.floor(left - 0.5)) and start + columns >= min(
        width, math.ceil(left + wide + 0.5)
    )
    assert first >= 0 and start >= 0 and first + rows <= height and start + columns <= width


@pytest.mark.parametrize("size", [8, 3])
def test_no_sample_takes_more_bytes_than_its_share(size, tmp_path):
    for height, width in [*SIZES[3:], (60, 47), (200, 201), (33, 32), (2000, 60)]:
        Image.new("RGB", (width, height)).save(tmp_path / "a.jpg")
        content = (tmp_path / "a.jpg").read_bytes()
        for sample in range(40):
            for view in (RandomCrop(0, 0, size), CentreCrop(size)):
                assert 0 < decode(content, sample, view, size).pixels.size <= most_bytes(size)
