"""Images: what it accepts, what it refuses and how, and its seeded subsets."""

import numpy as np
import pytest
import torch

from fastbn.data import Images
from fastbn.errors import UsageError


# neither square nor a power of two: a swapped axis shows
def make(n=23, height=5, width=7, classes=4, **more):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)
    return Images(images, torch.arange(n) % classes, **more)


def test_defaults_for_a_users_arrays():
    images = make()
    assert len(images) == 23 and images.classes == ("class 0", "class 1", "class 2", "class 3")
    assert images.mean == (0.485, 0.456, 0.406) and images.std == (0.229, 0.224, 0.225)
    assert images.flip and images.pad == 4 and images.default_epochs == 160
    assert repr(images) == "Images('images', 23 of 5×7, 4 classes, cpu)"


def test_numpy_and_lists_are_accepted():
    images = Images(np.zeros((3, 2, 2, 3), np.uint8), [2, 0, 1])
    assert images.labels.dtype == torch.int64 and images.labels.tolist() == [2, 0, 1]
    assert Images(np.zeros((3, 2, 2, 3), np.uint8), np.array([2, 0, 1], np.uint8)).labels.tolist() == [
        2,
        0,
        1,
    ]


BYTES = torch.zeros(4, 6, 6, 3, dtype=torch.uint8)
LABELS = torch.arange(4)


@pytest.mark.parametrize(
    ("images", "labels", "more", "message"),
    [
        (BYTES.float(), LABELS, {}, "must be uint8"),
        (torch.zeros(4, 3, 6, 6, dtype=torch.uint8), LABELS, {}, r"permute\(0, 2, 3, 1\)\.contiguous\(\)"),
        (torch.zeros(4, 6, 6, dtype=torch.uint8), LABELS, {}, "grey"),
        (torch.zeros(4, 6, 6, 1, dtype=torch.uint8), LABELS, {}, "grey"),
        (torch.zeros(0, 6, 6, 3, dtype=torch.uint8), LABELS[:0], {}, "at least one"),
        (
            torch.zeros(4, 3, 6, 6, dtype=torch.uint8).permute(0, 2, 3, 1),
            LABELS,
            {},
            r"images\.contiguous\(\)",
        ),
        (BYTES, LABELS.float(), {}, "must be integers"),
        (BYTES, LABELS[:3], {}, r"must be \(4,\)"),
        (BYTES, LABELS - 1, {}, "must lie in"),
        (BYTES, LABELS, {"classes": ("a", "b", "c")}, r"0 … 2 for 3 classes, got 0 … 3"),
        (BYTES, LABELS, {"std": (1, 1, 0)}, "std must be positive"),
        (BYTES, LABELS, {"mean": (0.5,)}, "mean must be three"),
        (BYTES, LABELS, {"pad": -1}, "pad must be"),
    ],
)
def test_refusals_name_the_remedy(images, labels, more, message):
    with pytest.raises(UsageError, match=message):
        Images(images, labels, **more)


def test_take_keeps_the_order_and_the_settings():
    images = make(name="some", flip=False, pad=2, default_epochs=9, classes=4)
    some = images.take([5, 1, 1])
    assert torch.equal(some.images, images.images[[5, 1, 1]]) and torch.equal(
        some.labels, images.labels[[5, 1, 1]]
    )
    assert (some.name, some.flip, some.pad, some.default_epochs, some.classes) == (
        "some",
        False,
        2,
        9,
        images.classes,
    )
    with pytest.raises(UsageError, match="at least one"):
        images.take([])


def test_limit_is_fixed_and_nested():
    images = make()
    five, nine = images.limit(5), images.limit(9)
    assert (
        len(five) == 5
        and torch.equal(nine.images[:5], five.images)
        and torch.equal(images.limit(5).images, five.images)
    )
    assert not torch.equal(five.images, images.images[:5])  # drawn, not the first ones
    assert images.limit(None) is images and images.limit(23) is images and images.limit(10**9) is images
    with pytest.raises(UsageError, match="leaves nothing"):
        images.limit(0)


def test_split_parts_the_set():
    images = make(n=23)
    images.images[:, 0, 0, 0] = torch.arange(23, dtype=torch.uint8)  # each image says which it is
    rest, held = images.split(6, seed=3)
    names = [part.images[:, 0, 0, 0].tolist() for part in (rest, held)]
    assert len(rest) == 17 and len(held) == 6 and sorted(names[0] + names[1]) == list(range(23))
    assert names[1] != images.split(6, seed=4)[1].images[:, 0, 0, 0].tolist()
    assert names[1] == images.split(6, seed=3)[1].images[:, 0, 0, 0].tolist()
    for n in (0, 23, 24):
        with pytest.raises(UsageError, match="hold"):
            images.split(n, seed=0)


def test_to_the_same_device_is_itself_and_another_moves_all():
    images = make()
    assert images.to("cpu") is images
    moved = images.to("meta")
    assert (
        moved.images.device.type == moved.labels.device.type == moved.device.type == "meta"
        and images.device.type == "cpu"
    )


def test_importing_the_package_imports_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, fastbn.data.names, fastbn.data; assert fastbn.data.DATASETS[0] == 'auto'; assert "
        "'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
