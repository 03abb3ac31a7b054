"""An image file's bytes -> the pixels of a crop: Pillow's own where nothing is reduced, and where
something is, in the right place."""

import io

import numpy as np
import pytest
from data_stream import Image

from fastbn.data.imagenet.crops import CentreCrop, Crop, RandomCrop
from fastbn.data.imagenet.decode import decode


def encoded(pixels, kind="PNG", **more):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **more)
    return file.getvalue()


def ramp(height, width):
    """Red grows by rows, green by columns."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 0] = np.linspace(0, 255, height)[:, None] + 0.5
    pixels[:, :, 1] = np.linspace(0, 255, width) + 0.5
    return pixels


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_small_crop_keeps_its_pixels(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    content = encoded(pixels, kind)
    whole = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    for sample in range(20):
        (top, left, height, width), _, flip = RandomCrop(3, 1, 16)(sample, 31, 47)
        found = decode(content, sample, RandomCrop(3, 1, 16), 16)
        assert np.array_equal(found.pixels, whole[top : top + height, left : left + width])
        assert found.box == (0, 0, height, width) and found.flip == flip
    centre = decode(content, 0, CentreCrop(16), 16)
    top, left, _, _ = CentreCrop(16)(0, 31, 47).region
    height, width, _ = centre.pixels.shape
    assert np.array_equal(centre.pixels, whole[top : top + height, left : left + width])


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "LA"])
def test_other_modes_become_rgb(mode):
    file = io.BytesIO()
    Image.new("RGB", (20, 12), (255, 255, 255)).convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG")
    pixels = decode(file.getvalue(), 0, CentreCrop(8), 8).pixels
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and (pixels > 250).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("height", "width"), [(400, 611), (1203, 800), (333, 1999)])
def test_a_large_crop_is_reduced_in_place(height, width, kind):
    """A ramp tells where each pixel came from: the box, cut out of the reduced image, spans what it spans
    in the large one."""
    content, size = (
        encoded(ramp(height, width), kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {})),
        16,
    )
    for view in [*(RandomCrop(0, e, size) for e in range(6)), CentreCrop(size)]:
        (top, left, tall, wide), _, _ = view(5, height, width)
        pixels, (new_top, new_left, new_tall, new_wide), _ = decode(content, 5, view, size)
        assert (
            min(new_tall, new_wide) == pytest.approx(2 * size, abs=1) and min(pixels.shape[:2]) < 2 * size + 4
        )
        # the colour at the box's centre, by the reduced image's own pixels around there
        for axis, (begin, length, side), (start, span) in (
            (0, (top, tall, height), (new_top, new_tall)),
            (1, (left, wide, width), (new_left, new_wide)),
        ):
            line = pixels[:, :, axis].astype(float).mean(1 - axis)
            found = np.interp(start + span / 2 - 0.5, np.arange(len(line)), line)
            per_pixel = 255 * length / side / span  # levels that one pixel of the reduced image spans
            assert found == pytest.approx(255 * (begin + length / 2) / side, abs=1.5 + 0.1 * per_pixel)


def test_a_large_jpeg_is_decoded_smaller(monkeypatch):
    from PIL.JpegImagePlugin import JpegImageFile

    drafted, real = [], JpegImageFile.draft
    monkeypatch.setattr(
        JpegImageFile, "draft", lambda image, *more: drafted.append((real(image, *more), image.size))
    )
    decode(encoded(ramp(640, 960), "JPEG"), 0, CentreCrop(14), 14)  # a centre of 560 is brought to 28
    assert [size for _, size in drafted] == [(120, 80)]  # libjpeg's 1/8
    decode(encoded(ramp(32, 32), "JPEG"), 0, CentreCrop(14), 14)  # exactly 28: nothing to reduce
    assert len(drafted) == 1


def test_reduction_averages_all_pixels():
    """A checkerboard of single pixels is grey when reduced: none is left out."""
    pixels = np.zeros((160, 160, 3), np.uint8)
    pixels[::2, ::2] = pixels[1::2, 1::2] = 255

    def whole(sample, height, width):
        return Crop((0, 0, height, width), (0, 0, height, width), False)

    found = decode(encoded(pixels), 0, whole, 20).pixels
    assert found.shape == (40, 40, 3) and (abs(found.astype(int) - 127) < 3).all()


@pytest.mark.parametrize(
    "content", [b"", b"no image", encoded(ramp(30, 30), "JPEG")[:300], encoded(ramp(30, 30))[:90]]
)
def test_what_is_no_image_raises(content):
    with pytest.raises(Exception):  # noqa: B017  # each decoder's own
        decode(content, 0, CentreCrop(8), 8)
