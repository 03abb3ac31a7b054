"""`Images`: a labelled image set that lies whole, as bytes, on one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastbn import choices, draws
from fastbn.data.classes import FEW, most_classes, rule
from fastbn.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BRIGHTNESS = 0.5  # the most that pixels in [0, 1] are brightened or darkened
PADDING = 256  # the row of the table that stands for a pixel outside the image


class Images:
    """Labelled images on one device, with what training needs to know of them.

    images  uint8 (N, H, W, 3), channels last, contiguous; a tensor or anything that `torch.as_tensor` takes
    labels  integers (N,), 0 … len(classes) − 1; kept as int64 on the images' device classes a name a class;
    by default "class 0" … up to the largest label, which then is below 1,000 or 32 times the number of
            different labels: a damaged one would ask for any number of classes
    mean, std   of the three channels, of pixels in [0, 1]; by default ImageNet's
    name    enters the seeded draws of `limit` and `split`
    flip, pad   the augmentation in training: random mirroring; a random crop of the image padded by `pad`
    zeros (0: none)
    default_epochs  how long to train by default

    Raises UsageError for a wrong dtype, shape or label.

        Images(torch.zeros(8, 32, 32, 3, dtype=torch.uint8), torch.arange(8))
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        classes: Sequence[str] | None = None,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        name: str = "images",
        flip: bool = True,
        pad: int = 4,
        default_epochs: int = 160,
    ):
        self.images = _checked_images(images)  # (N, H, W, 3)
        self.labels = _checked_labels(labels, self.images)  # (N,)
        low, high = int(self.labels.min()), int(self.labels.max())
        if classes is None and high >= FEW and high >= most_classes(self.labels):
            raise UsageError(
                f"a label is {high:,}, and must be {rule(self.labels)}; mend the labels, or name the "
                "classes (classes=…)"
            )
        self.classes = tuple(classes) if classes is not None else tuple(f"class {k}" for k in range(high + 1))
        if low < 0 or high >= len(self.classes):
            raise UsageError(
                f"labels must lie in 0 … {len(self.classes) - 1} for {len(self.classes)} classes, got {low} "
                f"… {high}"
            )
        self.mean, self.std = _three("mean", mean), _three("std", std)
        if min(self.std) <= 0:
            raise UsageError(
                f"std must be positive, got {self.std}; give the deviation of pixels scaled to [0, 1]"
            )
        if pad < 0 or default_epochs < 1:
            raise UsageError(
                f"pad must be at least 0 and default_epochs at least 1, got {pad} and {default_epochs}"
            )
        self.name, self.flip, self.pad, self.default_epochs = name, bool(flip), int(pad), int(default_epochs)
        self.brightness = False
        self._tables: dict[torch.dtype, Tensor] = {}

    def __len__(self) -> int:
        return self.images.shape[0]

    def __repr__(self) -> str:
        n, height, width, _ = self.images.shape
        return f"Images({self.name!r}, {n} of {height}×{width}, {len(self.classes)} classes, {self.device})"

    @property
    def device(self) -> torch.device:
        return self.images.device

    def to(self, device: torch.device | str) -> Images:
        """Return the same set on another device (itself where it already lies there)."""
        images = self.images.to(device)
        return self if images is self.images else self._with(images, self.labels.to(device))

    def take(self, indices: Any) -> Images:
        """Return the images at `indices` (n,), in that order."""
        indices = torch.as_tensor(indices, dtype=torch.int64, device=self.device)
        if indices.ndim != 1 or not len(indices):
            raise UsageError(f"indices must be a list of at least one, got shape {tuple(indices.shape)}")
        return self._with(self.images[indices], self.labels[indices])

    def prepared(self, augment: str | None = None, pixels: str = "standard") -> Images:
        """Return the same images, augmented otherwise in training, and normalised otherwise.

        augment: flip, crop and brightness joined by "+", or "none"; None: as now. crop pads by an eighth of
        the side where the set pads nothing; brightness adds up to ±0.5 to an image's pixels in [0, 1], cut
        off there.
        pixels: "unit" leaves them in [0, 1]. Raises UsageError for another name.
        """
        names, other = choices.augmentations(augment), self._with(self.images, self.labels)
        if names is not None:
            other.flip, other.brightness = "flip" in names, "brightness" in names
            other.pad = (self.pad or self.images.shape[1] // 8) if "crop" in names else 0
        if choices.one_of("pixels", pixels, choices.PIXELS) == "unit":
            other.mean, other.std = (0.0,) * 3, (1.0,) * 3
        return other

    def limit(self, n: int | None) -> Images:
        """Return `n` images drawn from the set, always the same ones and a smaller draw within a larger; None
        or n ≥ N: all."""
        if n is None or n >= len(self):
            return self
        if n < 1:
            raise UsageError(
                f"a limit of {n} images leaves nothing of {self.name}; ask for 1 … {len(self)}, or leave it "
                "out for all"
            )
        return self.take(draws.permutation(0, f"limit/{self.name}", len(self))[:n])

    def split(self, n: int, seed: int) -> tuple[Images, Images]:
        """Return (the rest, `n` held out for validation), drawn by the seed; both keep the set's order."""
        if not 1 <= n < len(self):
            raise UsageError(
                f"cannot hold {n} images out of the {len(self)} of {self.name}; ask for 1 … {len(self) - 1}"
            )
        order = torch.from_numpy(draws.permutation(seed, f"split/{self.name}", len(self)))
        return self.take(order[n:].sort().values), self.take(order[:n].sort().values)

    def table(self, dtype: torch.dtype) -> Tensor:
        """Return (3·257,), what byte v of channel c becomes, at 257·c + v: (v/255 − mean)/std, and 0 at v =
        256, the padding.

        Computed on the CPU in float32 and rounded once to `dtype`, so every device trains on the same bits.
        """
        if dtype not in self._tables:
            table = torch.zeros(3, PADDING + 1)
            levels = torch.arange(256, dtype=torch.float32) / 255
            table[:, :256] = (levels - torch.tensor(self.mean)[:, None]) / torch.tensor(self.std)[:, None]
            self._tables[dtype] = table.flatten().to(self.device, dtype)
        return self._tables[dtype]

    def _with(self, images: Tensor, labels: Tensor) -> Images:
        other = object.__new__(Images)
        other.__dict__.update(self.__dict__, images=images, labels=labels, _tables={})
        return other


def _checked_images(images: Any) -> Tensor:
    images = torch.as_tensor(images)
    shape = tuple(images.shape)
    if images.dtype != torch.uint8:
        raise UsageError(
            f"images must be uint8 (0 … 255), got {images.dtype}; pass the bytes: fastbn normalises by mean "
            "and std itself"
        )
    if images.ndim == 4 and shape[3] != 3 and shape[1] == 3:
        raise UsageError(
            f"images must be (N, H, W, 3), channels last, got {shape}; pass images.permute(0, 2, 3, "
            "1).contiguous()"
        )
    if images.ndim != 4 or shape[3] != 3:
        raise UsageError(
            f"images must be (N, H, W, 3), got {shape}; a grey set becomes RGB by images[..., "
            "None].repeat(1, 1, 1, 3)"
        )
    if 0 in shape:
        raise UsageError(f"images must hold at least one pixel, got {shape}")
    if not images.is_contiguous():
        raise UsageError(
            f"images {shape} must be contiguous, got strides {images.stride()}; pass images.contiguous()"
        )
    return images


def _checked_labels(labels: Any, images: Tensor) -> Tensor:
    try:
        labels = torch.as_tensor(labels)
    # a text, a ragged list, a number beyond 64 bits
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise UsageError(
            "labels must be integers of at most 64 bits, one per image; these can't be made a tensor"
        ) from None
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise UsageError(f"labels must be integers, got {labels.dtype}; pass labels.long()")
    if tuple(labels.shape) != (images.shape[0],):
        raise UsageError(f"labels must be ({images.shape[0]},), one an image, got {tuple(labels.shape)}")
    return labels.to(images.device, torch.int64)


def _three(what: str, values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise UsageError(f"{what} must be three numbers, one a channel, got {tuple(values)}")
    return float(values[0]), float(values[1]), float(values[2])
