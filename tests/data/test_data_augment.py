"""Batches by indexing equal a naive loop over the images, bit for bit; the draws are fixed and belong to
the sample."""

import hashlib

import pytest
import torch
import torch.nn.functional as F

from fastbn.data import Images, batch, draw_epoch
from fastbn.errors import UsageError

MEAN, STD = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)  # different in every channel: a swapped channel shows


def make(n=19, height=9, width=6, pad=4, flip=True):  # height ≠ width, neither a power of two
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)
    return Images(images, torch.arange(n) % 3, mean=MEAN, std=STD, pad=pad, flip=flip)


def naive(images, indices, epoch):
    """Return the batch, made one image at a time: normalise, pad with zeros, crop, mirror."""
    _, height, width, _ = images.images.shape
    out = []
    for i in indices.tolist():
        x = images.images[i].permute(2, 0, 1).float() / 255
        x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        if epoch is not None:
            top, left = epoch.offsets[i].tolist()
            x = F.pad(x, (epoch.pad,) * 4)[:, top : top + height, left : left + width]
            x = x.flip(2) if epoch.flips[i] else x
        out.append(x)
    return torch.stack(out)


@pytest.mark.parametrize(
    ("height", "width", "pad", "flip"),
    [
        (32, 32, 4, True),  # CIFAR's
        (9, 6, 4, True),  # not square
        (3, 2, 5, True),  # padding wider than the image: a crop may miss it altogether
        (8, 8, 4, False),  # the digits': shifts alone
        (7, 5, 0, True),  # mirroring alone
        (1, 1, 1, True),  # a single pixel
    ],
)
def test_equals_the_naive_loop(height, width, pad, flip):
    images = make(40, height, width, pad, flip)
    epoch = draw_epoch(40, seed=1, epoch=2, pad=pad, flip=flip)
    # a batch, a ragged one, a sample twice
    for indices in (epoch.order[:16], epoch.order[16:17], torch.tensor([3, 3, 0])):
        got = batch(images, indices, epoch)
        assert got.shape == (len(indices), 3, height, width) and got.dtype == torch.float32
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(got, naive(images, indices, epoch))
        assert torch.equal(batch(images, indices, None), naive(images, indices, None))


def test_padding_is_positive_zero():
    images = make(8, 3, 2, 5)
    got = batch(images, torch.arange(8), draw_epoch(8, 0, 0, 5, True))
    zeros = got[got == 0]
    assert len(zeros) > 0 and not torch.signbit(zeros).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_float32_rounded_once(dtype):
    images, epoch = make(), draw_epoch(19, 0, 0, 4, True)
    assert torch.equal(batch(images, epoch.order, epoch, dtype), batch(images, epoch.order, epoch).to(dtype))


def test_the_batch_is_fresh_storage():
    images, epoch = make(), draw_epoch(19, 0, 0, 4, True)
    first = batch(images, epoch.order, epoch)
    kept, bytes_before = first.clone(), images.images.clone()
    batch(images, epoch.order, epoch).zero_()
    batch(images, epoch.order, None).zero_()
    assert torch.equal(first, kept) and torch.equal(images.images, bytes_before)
    assert torch.equal(batch(images, epoch.order, epoch), kept)


def test_draws_cover_their_ranges():
    n = 4000
    epoch = draw_epoch(n, seed=0, epoch=0, pad=4, flip=True)
    assert torch.equal(epoch.order.sort().values, torch.arange(n)) and epoch.order.dtype == torch.int64
    for axis in range(2):
        counts = epoch.offsets[:, axis].bincount(minlength=9)
        # five standard deviations
        assert len(counts) == 9 and (counts - n / 9).abs().max() < 5 * (n / 9) ** 0.5
    assert abs(int(epoch.flips.sum()) - n / 2) < 5 * (n / 4) ** 0.5
    joint = torch.stack([epoch.offsets[:, 0], epoch.offsets[:, 1], epoch.flips]).double()
    # rows, columns and mirroring are independent
    assert (torch.corrcoef(joint) - torch.eye(3)).abs().max() < 5 / n**0.5


def test_draws_belong_to_seed_and_epoch():
    digest = {}
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        drawn = draw_epoch(50, seed, epoch, 4, True)
        blob = b"".join(t.numpy().tobytes() for t in (drawn.order, drawn.offsets, drawn.flips))
        digest.setdefault((seed, epoch), set()).add(hashlib.sha256(blob).hexdigest())
    assert all(len(values) == 1 for values in digest.values()) and len(set.union(*digest.values())) == 3


def test_golden_draws():
    """A change of these bits changes every run: resumed runs and published results would no longer repeat."""
    drawn = draw_epoch(5, seed=0, epoch=1, pad=4, flip=True)
    assert drawn.order.tolist() == [4, 2, 0, 3, 1]
    assert drawn.offsets.tolist() == [[6, 2], [2, 0], [5, 7], [6, 6], [4, 2]] and drawn.flips.tolist() == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_a_sample_has_its_own_crop_wherever_it_stands():
    images, epoch = make(), draw_epoch(19, 0, 0, 4, True)
    together, backwards = (
        batch(images, torch.arange(19), epoch),
        batch(images, torch.arange(18, -1, -1), epoch),
    )
    assert torch.equal(together, backwards.flip(0))


def test_without_pad_or_flip_nothing_is_drawn():
    epoch = draw_epoch(30, 0, 0, pad=0, flip=False)
    assert not epoch.offsets.any() and not epoch.flips.any()
    images = make(30, pad=0, flip=False)
    assert torch.equal(batch(images, epoch.order, epoch), batch(images, epoch.order, None))


def test_an_epoch_of_another_set_is_refused():
    with pytest.raises(UsageError, match="drawn for 7 samples, the set images has 19"):
        batch(make(), torch.arange(3), draw_epoch(7, 0, 0, 4, True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_cpus_bits_without_a_synchronisation():
    images, epoch = make(), draw_epoch(19, 0, 0, 4, True)
    there, drawn = images.to("cuda"), epoch.to("cuda")
    there.table(torch.float32)  # copied to the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = [batch(there, drawn.order, drawn), batch(there, drawn.order, None)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got[0].cpu(), batch(images, epoch.order, epoch)) and torch.equal(
        got[1].cpu(), batch(images, epoch.order, None)
    )


def test_brightness_adds_to_the_pixels_and_cuts_off():
    images = Images(torch.randint(0, 256, (6, 9, 7, 3), dtype=torch.uint8), torch.arange(6))
    lit = images.prepared("crop+brightness")
    assert (lit.flip, lit.brightness, lit.pad) == (False, True, images.pad) and images.brightness is False
    epoch = draw_epoch(6, 3, 2, lit.pad, lit.flip, lit.brightness)
    assert epoch.brightness.abs().max() <= 0.5 and len(set(epoch.brightness.tolist())) == 6
    plain = draw_epoch(6, 3, 2, lit.pad, lit.flip)
    indices = torch.tensor([4, 0, 5])
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.mean, images.std))
    unit = batch(lit, indices, plain) * std + mean
    expected = ((unit + epoch.brightness[indices][:, None, None, None]).clamp(0, 1) - mean) / std
    torch.testing.assert_close(batch(lit, indices, epoch), expected)
    assert batch(lit, indices, epoch).is_contiguous(memory_format=torch.channels_last)


def test_pixels_in_units_and_no_augmentation():
    images = Images(torch.randint(0, 256, (6, 9, 7, 3), dtype=torch.uint8), torch.arange(6))
    raw = images.prepared("none", "unit")
    assert (raw.flip, raw.pad, raw.brightness) == (False, 0, False)
    found = batch(raw, torch.arange(6), draw_epoch(6, 0, 0, raw.pad, raw.flip))
    torch.testing.assert_close(found, images.images.permute(0, 3, 1, 2) / 255)
    with pytest.raises(UsageError, match="pixels must be one of standard, unit"):
        images.prepared(pixels="raw")
