"""The device's crops against float64: F.interpolate of the same crop, mirrored and normalised by the
formula."""

import pytest
import torch
import torch.nn.functional as F

from fastbn.data.imagenet import resample as module
from fastbn.data.imagenet.crops import CentreCrop
from fastbn.data.imagenet.resample import ROW, resample
from fastbn.data.imagenet.upload import Upload
from fastbn.data.images import IMAGENET_MEAN, IMAGENET_STD

# height, width: enlarged, reduced, a single row
SIZES = [(5, 7), (1, 1), (1, 9), (30, 30), (13, 40), (64, 2), (32, 32)]
SIZE = 15
# three products and sums of numbers up to 255 in float32, divided by 255·0.22: 4·2⁻²⁴·255/57
TOLERANCE = 2e-6


def packed(images, boxes, flips):
    """Return the flat bytes and the rows."""
    content, rows, start = [], [], 0
    for k, (image, box, flip) in enumerate(zip(images, boxes, flips, strict=True)):
        rows.append((start, *image.shape[:2], *box, flip, k))
        content.append(image.reshape(-1))
        start += image.numel()
    return torch.cat([*content, torch.zeros(5, dtype=torch.uint8)]), torch.tensor(
        rows, dtype=torch.float64
    ).view(-1, ROW)


def images(sizes=SIZES):
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=draw) for size in sizes]


def normalised(x):
    return (x / 255 - torch.tensor(IMAGENET_MEAN, dtype=torch.float64)[:, None, None]) / torch.tensor(
        IMAGENET_STD
    ).double()[:, None, None]


def resized(image, size):
    return F.interpolate(image.permute(2, 0, 1)[None].double(), size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("at_once", [1, 3 * SIZE * SIZE, 1 << 21])
def test_whole_images_are_interpolated(flip, at_once, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    given = images()
    content, rows = packed(given, [(0, 0, *image.shape[:2]) for image in given], [flip] * len(given))
    x = resample(content, rows, SIZE)
    assert (
        x.shape == (len(given), 3, SIZE, SIZE)
        and x.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
    )
    for found, image in zip(x, given, strict=True):
        expected = normalised(resized(image, (SIZE, SIZE)))
        assert (found - (expected.flip(2) if flip else expected)).abs().max() < TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(20, 33), (40, 25), (17, 17), (16, 90)])
def test_a_centre_crop_is_resizing_and_cutting(height, width):
    (image,) = images([(height, width)])
    (top, left, tall, wide), (first, start, rows, columns), _ = CentreCrop(SIZE)(0, height, width)
    part = image[first : first + rows, start : start + columns].contiguous()
    x = resample(*packed([part], [(top - first, left - start, tall, wide)], [False]), SIZE)
    short = min(height, width)
    new = 17 * height // short, 17 * width // short
    row, column = round((new[0] - SIZE) / 2), round((new[1] - SIZE) / 2)
    expected = resized(image, new)[:, row : row + SIZE, column : column + SIZE]
    assert (x[0] - normalised(expected)).abs().max() < TOLERANCE


def test_a_samples_bits_do_not_depend_on_its_neighbours():
    given = images()
    boxes = [(0, 0, *image.shape[:2]) for image in given]
    together = resample(*packed(given, boxes, [1] * len(given)), SIZE)
    for k, image in enumerate(given):
        assert torch.equal(resample(*packed([image], boxes[k : k + 1], [1]), SIZE)[0], together[k])


def test_no_samples_make_an_empty_batch():
    x = resample(torch.empty(0, dtype=torch.uint8), torch.empty(0, ROW, dtype=torch.float64), SIZE)
    assert x.shape == (0, 3, SIZE, SIZE)


def test_an_upload_grows_with_its_batches_and_reads_labels():
    upload = Upload(torch.device("cpu"))
    given = images([(700, 800), (3, 5), (900, 900)])  # 1.7 MB, then more than doubled
    for chosen in (given[1:2], given, given[:1]):
        buffer, rows = upload.begin(), []
        for k, image in enumerate(chosen):
            start = buffer.append(image.view(-1))
            rows.append((start, *image.shape[:2], 0, 0, *image.shape[:2], 0, 7 + k))
        x, labels = upload.finish(buffer, torch.tensor(rows, dtype=torch.float64), SIZE)
        assert labels.tolist() == list(range(7, 7 + len(chosen))) and labels.dtype == torch.int64
        for found, image in zip(x, chosen, strict=True):
            assert (found - normalised(resized(image, (SIZE, SIZE)))).abs().max() < TOLERANCE
