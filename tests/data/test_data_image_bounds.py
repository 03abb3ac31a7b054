"""Image files: how large they may be, how sixteen bits are read, and what is said of what is not read."""

import io
import os
import zlib

import numpy as np
import pytest
from damage import bounded, refused
from data_stream import Image

from fastbn.data import class_folders as module
from fastbn.data.class_folders import read_folder
from fastbn.data.image_file import rgb
from fastbn.data.imagenet import read_imagenet
from fastbn.data.imagenet.crops import CentreCrop
from fastbn.data.imagenet.decode import decode
from fastbn.data.imagenet.source import Location
from fastbn.data.imagenet.worker import read
from fastbn.errors import UsageError


def picture(width, height, mode="L", kind="PNG"):
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, kind)
    return file.getvalue()


def claiming(width, height):
    """Return a PNG of so many pixels by its header alone."""
    content = bytearray(picture(8, 8))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.fixture
def classes(tmp_path):
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.png").write_bytes(picture(40, 40))
    return tmp_path


LARGE = {
    "a line": (
        picture(1, 600_000),
        r"with 32 pixels on its shorter side the image has 32×19,200,000 pixels, and more than 67,108,864",
    ),
    "a long line": (picture(1, 5_000_000), "pixels on its shorter side"),
    "a row": (picture(3_000_000, 1), "pixels on its shorter side"),
    "a square": (claiming(9_000, 9_000), "the image is 9,000×9,000 pixels"),
    "a bomb": (claiming(60_000, 60_000), "DecompressionBombError"),
}


@pytest.mark.filterwarnings("error")  # Pillow warns of some
@pytest.mark.parametrize("what", LARGE)
def test_an_image_that_is_too_large_is_refused(classes, what):
    content, message = LARGE[what]
    (classes / "train" / "a" / "1.png").write_bytes(content)
    refused(read_folder, classes, match=f"train/a/1.png cannot be read as an image .*{message}")


@pytest.mark.parametrize("least", [40 * 40 - 1, 40 * 40], ids=["large", "not large"])
def test_large_images_are_decoded_one_at_a_time(classes, monkeypatch, least):
    seen = []
    monkeypatch.setattr(module, "LARGE", least)
    monkeypatch.setattr(module, "rgb", lambda image: seen.append(module._large.locked()) or rgb(image))
    assert len(read_folder(classes)[0]) == 2 and seen == [least < 40 * 40] * 4


@pytest.mark.parametrize("content", [claiming(9_000, 9_000), claiming(60_000, 60_000)])
def test_a_streamed_image_that_is_too_large_is_a_broken_one(content):
    with bounded(), pytest.raises(Exception, match=r"9,000×9,000|decompression bomb"):
        decode(content, 0, CentreCrop(16), 16)


def test_a_large_photograph_is_streamed_as_it_is_decoded(monkeypatch):
    monkeypatch.setattr("fastbn.data.image_file.MOST_PIXELS", 100 * 100)
    assert (
        decode(picture(640, 640, "RGB", "JPEG"), 0, CentreCrop(14), 14).pixels.shape[2] == 3
    )  # 80×80 by libjpeg
    with pytest.raises(UsageError, match="640×640"):
        decode(picture(640, 640), 0, CentreCrop(14), 14)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_read_by_their_range(classes, kind):
    levels = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind)
    (classes / "train" / "a" / "0.png").write_bytes(file.getvalue())
    expected = np.rint(levels / 257)
    found = read_folder(classes, 32)[0].images[0].numpy()
    assert (found == expected[:, :, None]).all() and (found == 255).mean() < 0.01
    part = decode(file.getvalue(), 0, CentreCrop(28), 28)
    assert np.array_equal(part.pixels[:, :, 0], expected[1:-1, 1:-1]) or np.array_equal(
        part.pixels[:, :, 0], expected
    )


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_have_no_range(classes, mode):
    (classes / "train" / "a" / "0.png").write_bytes(picture(40, 40, mode, "TIFF"))
    refused(read_folder, classes, match="32-bit values, whose range is not known")


def test_no_program_is_run_for_an_image(classes):
    """EPS is a program, which Pillow has Ghostscript run."""
    (classes / "train" / "a" / "0.png").write_bytes(picture(40, 40, "L", "EPS"))
    refused(read_folder, classes, match="cannot be read as an image")


def test_what_is_skipped_is_counted(classes, capsys):
    for name in ("x.tif", "y.TIF", "z.gif", "notes.txt", ".hidden", "none"):
        (classes / "train" / "a" / name).touch()
    (classes / "train" / "b" / "deeper").mkdir()
    (classes / "train" / "loose.png").touch()
    (classes / "test" / "labels.csv").touch()
    assert [len(part) for part in read_folder(classes)] == [2, 2]
    out, err = capsys.readouterr()
    kinds = ".tif: 2, .gif: 1, beside the class folders: 1, folders: 1, without a suffix: 1"
    assert out == "" and err.count("\n") == 1 and f"skipped 6 in {classes}/train ({kinds})" in err
    read_imagenet(classes, 16, workers=0)
    assert f"skipped 6 in {classes}/train ({kinds})" in capsys.readouterr().err
    (classes / "train" / "a" / "0.png").unlink()
    refused(
        read_folder,
        classes,
        match=r"train/a holds no image \(.png, .*\), but .tif: 2, .gif: 1, without a suffix: 1; add some",
    )


def test_an_image_file_has_at_most_so_many_bytes(classes):
    os.truncate(classes / "train" / "a" / "0.png", 1 << 40)
    refused(read_folder, classes, match="more than the 268,435,456 that such a file may have")
    for location in (
        Location(str(classes / "train/a/0.png"), 0, -1),
        Location(str(classes / "train/a/0.png"), 0, 1 << 39),
    ):
        refused(read, location, match="more than the 268,435,456", kind=OSError)
