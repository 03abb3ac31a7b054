"""The kernel's batches are those of fastbn.data.augment, bit for bit."""

import pytest
import torch
from crosscompile import Request, costs
from interpreted import DEVICE

from fastbn.data import Images, draw_epoch
from fastbn.data import batch as reference
from fastbn.kernels.triton import augment

MEAN, STD = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)  # different in every channel: a swapped channel shows
INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@pytest.fixture(autouse=True)
def poisoned():
    """Fresh storage holds NaN: a value that the kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make(n=19, height=9, width=6, pad=4, flip=True):  # height ≠ width, neither a power of two
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)
    return Images(images, torch.arange(n) % 3, mean=MEAN, std=STD, pad=pad, flip=flip)


def run(images, indices, epoch, dtype=torch.float32):
    there = images.to(DEVICE)
    draws = (
        (None, None, 0) if epoch is None else (epoch.offsets.to(DEVICE), epoch.flips.to(DEVICE), epoch.pad)
    )
    return augment.batch(there.images, there.table(dtype), indices.to(DEVICE), *draws)


def assert_same(images, indices, epoch, dtype=torch.float32):
    found, expected = run(images, indices, epoch, dtype), reference(images, indices, epoch, dtype)
    assert found.shape == expected.shape and found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    # bits: −0 is not 0, NaN equals itself
    assert torch.equal(found.cpu().view(INTEGERS[dtype]), expected.view(INTEGERS[dtype]))


@pytest.mark.parametrize(
    ("height", "width", "pad", "flip"),
    [
        (32, 32, 4, True),  # CIFAR's, three whole blocks an image
        (9, 6, 4, True),  # not square, less than a block
        (19, 23, 3, True),  # a block and a ragged one, which begins within a row
        (3, 2, 5, True),  # padding wider than the image: a crop may miss it altogether
        (8, 8, 4, False),  # the digits': shifts alone
        (7, 5, 0, True),  # mirroring alone
        (1, 5, 1, True),  # what Triton takes for a constant when it is 1
        (1, 1, 1, True),  # a single pixel
    ],
)
def test_equals_the_reference(height, width, pad, flip):
    images = make(20, height, width, pad, flip)
    epoch = draw_epoch(20, seed=1, epoch=2, pad=pad, flip=flip)
    # a batch, a single image, a sample twice
    for indices in (epoch.order[:5], epoch.order[5:6], torch.tensor([3, 3, 0])):
        assert_same(images, indices, epoch)
        assert_same(images, indices, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_types(dtype):
    images, epoch = make(), draw_epoch(19, 0, 0, 4, True)
    assert_same(images, epoch.order, epoch, dtype)
    assert_same(images, epoch.order, None, dtype)


def test_every_shift_with_and_without_mirroring():
    images, epoch = make(9 * 9 * 2, 5, 3), draw_epoch(9 * 9 * 2, 0, 0, 4, True)
    shifts = torch.arange(9)
    epoch.offsets.copy_(torch.cartesian_prod(shifts, shifts).repeat(2, 1))
    epoch.flips.copy_(torch.arange(2).repeat_interleave(81) == 1)
    assert_same(images, torch.arange(9 * 9 * 2), epoch)


def test_the_batch_is_fresh_storage_and_the_set_is_only_read():
    images, epoch = make(), draw_epoch(19, 0, 0, 4, True)
    before, first = images.images.clone(), run(images, epoch.order, epoch)
    kept = first.clone()
    run(images, epoch.order, epoch).zero_()
    assert torch.equal(first, kept) and torch.equal(images.images, before)


@pytest.mark.slow
def test_sets_of_more_than_two_gigabytes():
    size = 64 * 64 * 3
    n = 2**31 // size + 2
    images = torch.zeros(1, dtype=torch.uint8, device=DEVICE).new_zeros(n, 64, 64, 3)
    images[-1] = torch.arange(size, device=DEVICE).view(64, 64, 3).to(torch.uint8)
    small = Images(images[-1:].clone().cpu(), [0])
    found = augment.batch(
        images, small.table(torch.float32).to(DEVICE), torch.tensor([n - 1], device=DEVICE), None, None, 0
    )
    assert torch.equal(found.cpu(), reference(small, torch.tensor([0]), None))


def request(capability: int, table: str, drawn: bool) -> Request:
    draws = {"offsets_ptr": "*i64", "flips_ptr": "*i1"}
    signature = {
        "images_ptr": "*u8",
        "table_ptr": table,
        "indices_ptr": "*i64",
        **(draws if drawn else {}),
        "out_ptr": table,
        "pad": "i32",
    }
    constexprs = {
        "H": 32,
        "W": 32,
        "PADDING": 256,
        "BLOCK": augment.BLOCK,
        **({} if drawn else dict.fromkeys(draws)),
    }
    return Request(
        "fastbn.kernels.triton.augment",
        "augment_kernel",
        signature,
        constexprs,
        {"num_warps": augment.WARPS},
        capability,
    )


def check(requests):
    for asked, cost in zip(requests, costs(requests), strict=True):
        assert cost.spills == 0 and cost.count("STG.E.128") > 0, asked


@pytest.mark.slow
def test_compiles_without_spills_and_stores_sixteen_bytes_at_a_time():
    check([request(90, "*bf16", True)])


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_compiles_for_every_capability(capability):
    check([request(capability, table, drawn) for table in ("*fp32", "*bf16") for drawn in (True, False)])
