"""Corrupted images: noise, blur, contrast and brightness at three severities, the same bytes everywhere.

After Hendrycks and Dietterich 2019, Benchmarking Neural Network Robustness to Common Corruptions; the
parameters are this file's own, and CIFAR-10-C is other images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastbn import draws
from fastbn.data.images import Images
from fastbn.errors import UsageError

SEVERITIES = (1, 2, 3)
PART = 1000  # images that are worked on at once


def corrupted(images: Images, kind: str, severity: int, seed: int = 0) -> Images:
    """Return the same images and labels, corrupted: image i the same whatever the others are.

    kind: of KINDS; severity: of SEVERITIES; seed: of the noise. Raises UsageError for another kind or
    severity."""
    if kind not in KINDS or severity not in SEVERITIES:
        known = f"corruptions are {', '.join(KINDS)} at severities {SEVERITIES}"
        raise UsageError(f"{known}; got {kind!r}, {severity!r}")
    parts = []
    for start in range(0, len(images), PART):
        x = images.images[start : start + PART].float() / 255  # (n, H, W, 3)
        worse = KINDS[kind](x, severity - 1, f"{seed}/{start // PART}")
        parts.append((worse.clamp(0, 1) * 255).round().to(torch.uint8))
    of = {"mean": images.mean, "std": images.std, "name": f"{images.name}, {kind} {severity}"}
    return Images(torch.cat(parts), images.labels, images.classes, **of)


def _noise(x: Tensor, level: int, name: str) -> Tensor:
    drawn = draws.normal(0, f"corruption/noise/{name}", x.numel()).astype(np.float32)
    return x + (0.04, 0.08, 0.12)[level] * torch.from_numpy(drawn).view(x.shape)


def _blur(x: Tensor, level: int, name: str) -> Tensor:
    """Gaussian, of this many pixels' standard deviation."""
    sigma = (0.6, 0.9, 1.2)[level]
    along = torch.arange(-4, 5, dtype=torch.float32)
    kernel = (-(along**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, 1, 9)
    planes = F.pad(x.permute(0, 3, 1, 2).flatten(0, 1)[:, None], (4, 4, 4, 4), mode="reflect")
    planes = F.conv2d(F.conv2d(planes, kernel), kernel.transpose(2, 3))
    return planes.view(len(x), 3, *x.shape[1:3]).permute(0, 2, 3, 1)


def _contrast(x: Tensor, level: int, name: str) -> Tensor:
    mean = x.mean((1, 2), keepdim=True)  # of each image and channel
    return mean + (0.5, 0.3, 0.15)[level] * (x - mean)


def _brightness(x: Tensor, level: int, name: str) -> Tensor:
    return x + (0.15, 0.3, 0.45)[level]


KINDS: dict[str, Callable[[Tensor, int, str], Tensor]]
KINDS = {"noise": _noise, "blur": _blur, "contrast": _contrast, "brightness": _brightness}
