"""Class folders: pixels, labels, and a one-line error for each way a folder can be wrong."""

import sys

import numpy as np
import pytest

from fastbn.data import class_folders as module
from fastbn.data import load
from fastbn.data.class_folders import read_folder
from fastbn.errors import MachineError, UsageError

Image = pytest.importorskip("PIL.Image", reason="needs Pillow, the extra fastbn[images]")


def picture(path, width=40, height=40, colour=(10, 200, 60), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).convert(mode).save(path)


@pytest.fixture
def root(tmp_path):
    """Two classes; sizes larger, smaller, wide and tall; every suffix."""
    for split in ("train", "test"):
        picture(tmp_path / split / "cat" / "a.png", 40, 40, (255, 0, 0))
        picture(tmp_path / split / "cat" / "b.bmp", 90, 33, (255, 0, 0))
        picture(tmp_path / split / "dog" / "a.PNG", 33, 90, (0, 0, 255))
    picture(tmp_path / "train" / "dog" / "b.jpg", 7, 5, (0, 0, 255))
    picture(tmp_path / "train" / "dog" / "c.jpeg", 32, 32, (0, 0, 255))
    picture(tmp_path / "train" / "dog" / "d.webp", 64, 64, (0, 0, 255))
    (tmp_path / "train" / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path


@pytest.mark.parametrize("size", [32, 5, 48])
def test_reads_every_suffix_and_shape(root, size):
    train, test = read_folder(root, size)
    assert train.images.shape == (6, size, size, 3) and test.images.shape == (3, size, size, 3)
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1, 1, 1, 1] and test.labels.tolist() == [0, 0, 1]
    assert train.flip and train.pad == size // 8 and train.name == root.name
    for images in (train, test):
        colours = images.images.float().mean((1, 2))
        assert (colours[images.labels == 0, 0] > 245).all() and (colours[images.labels == 1, 2] > 245).all()


def test_val_stands_in_for_test(root):
    (root / "test").rename(root / "val")
    assert len(read_folder(root)[1]) == 3


def test_the_pixels_of_an_image_of_the_right_size_are_kept(root):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(root / "train" / "cat" / "0.png")
    assert np.array_equal(read_folder(root)[0].images[0].numpy(), pixels)


def test_the_centre_is_kept(root):
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 255  # the middle third is white
    Image.fromarray(pixels).save(root / "train" / "cat" / "0.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(root / "train" / "cat" / "1.png")
    assert (read_folder(root)[0].images[:2] == 255).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_other_modes_become_rgb(root, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    picture(root / "train" / "cat" / f"0.{suffix}", colour=(255, 255, 255), mode=mode)
    assert (read_folder(root)[0].images[0] > 250).all()


def one_line(root, message, kind=UsageError):
    with pytest.raises(kind, match=message) as caught:
        read_folder(root)
    assert "\n" not in str(caught.value)


def test_a_broken_image_is_named(root):
    whole = (root / "train" / "cat" / "a.png").read_bytes()
    for content in (b"", b"no image", whole[:40], whole[: len(whole) // 2]):
        (root / "train" / "dog" / "x.png").write_bytes(content)
        one_line(root, "train/dog/x.png cannot be read as an image")


def test_an_empty_class_is_named(root):
    (root / "train" / "bird").mkdir()
    one_line(root, "train/bird holds no image")


def test_differing_classes_are_named(root):
    picture(root / "train" / "bird" / "a.png")
    one_line(root, "train/bird has no counterpart in .*test")
    (root / "train" / "bird").rename(root / "test" / "bird")
    one_line(root, "test/bird has no counterpart in .*train")


def test_missing_folders_are_named(root, tmp_path):
    (root / "test").rename(root / "tset")
    one_line(root, "holds no folder test or val")
    (root / "tset").rename(root / "test")
    (root / "train").rename(root / "trian")
    one_line(root, "train is not there")
    (root / "train").mkdir()
    one_line(root, "train holds no class folders")
    one_line(tmp_path / "nowhere", "holds no folder test or val")


def test_a_size_below_one_is_refused(root):
    with pytest.raises(UsageError, match="at least 1 pixel, got 0"):
        read_folder(root, 0)


def test_what_no_memory_holds_is_refused_beforehand(root):
    with pytest.raises(MachineError, match=r"need .* GB, this machine has"):
        read_folder(root, 10**7)


def test_without_pillow_the_extra_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    one_line(root, r"pip install 'fastbn\[images\]'", MachineError)


def test_a_long_read_is_announced(root, monkeypatch, capsys):
    read_folder(root)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(module, "LONG", 5)
    read_folder(root)
    out, err = capsys.readouterr()
    assert out == "" and err == f"reading 6 images from {root}/train\n"


def test_load_hands_the_size_on(root):
    loaded = load("folder", root, size=24)
    assert loaded.name == "folder" and loaded.train.images.shape[1] == 24 and str(root) in loaded.why
