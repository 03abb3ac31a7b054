"""Small networks, one per kind of convolution, on which the Triton engine is held to the reference engine.

A probe is flip-free (β = ±6): no ReLU's sign depends on a rounding, so gradients can be held to the storage
type's own rounding. Each is called four times: on CUDA the first call runs as it is, the second is recorded
as a CUDA graph, the others replay it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from fastbn.engine.context import mixed
from fastbn.engine.fuse import fuse
from fastbn.engine.triton import tf32

CALLS = 4
BATCH, HEIGHT = 4, 16
ROUNDINGS = 4  # of the storage type, that a network of a few layers adds up to; the tests' own figure
FLOAT32 = 2e-5  # the same for float32, whose products are three TF32 products on CUDA
STOCK = 3  # how much further off than stock PyTorch in the same type


@dataclasses.dataclass(frozen=True)
class Kind:
    """A convolution as the engine tells them apart."""

    in_channels: int
    channels: int
    kernel: int
    stride: int = 1

    def __str__(self) -> str:
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}×{self.kernel}{stride}, {self.in_channels} to {self.channels} channels"


KINDS = (
    Kind(3, 16, 3),  # the CIFAR stem
    Kind(16, 16, 3),
    Kind(16, 32, 3, 2),  # with a projection
    Kind(32, 32, 3),
    Kind(64, 64, 3),
    Kind(3, 64, 7, 2),  # the ImageNet stem
    Kind(64, 128, 1),
    Kind(128, 256, 3, 2),
    Kind(256, 64, 1),
)


class Probe(nn.Module):
    """A convolution of a kind behind a BatchNorm and a ReLU, and a residual or a projection added to it."""

    def __init__(self, kind: Kind):
        super().__init__()
        entry = kind.in_channels == 3
        pad = kind.kernel // 2
        self.first = None if entry else nn.Conv2d(kind.in_channels, kind.in_channels, 1, bias=False)
        self.first_norm = None if entry else nn.BatchNorm2d(kind.in_channels)
        self.conv = nn.Conv2d(kind.in_channels, kind.channels, kind.kernel, kind.stride, pad, bias=False)
        self.norm = nn.BatchNorm2d(kind.channels)
        same = kind.in_channels == kind.channels and kind.stride == 1
        self.projection: nn.Module | None = None
        if not entry and not same:
            self.projection = nn.Conv2d(kind.in_channels, kind.channels, 1, kind.stride, bias=False)
            self.projection_norm = nn.BatchNorm2d(kind.channels)
        draw = torch.Generator().manual_seed(kind.channels + kind.kernel)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    fan_in = module.weight[0].numel()
                    module.weight.copy_(torch.randn(module.weight.shape, generator=draw) / fan_in**0.5)
                    module.weight.requires_grad_(False)
                elif isinstance(module, nn.BatchNorm2d):
                    module.weight.copy_(torch.rand(module.num_features, generator=draw) + 0.5)
                    module.bias.copy_(torch.where(torch.arange(module.num_features) % 3 > 0, 6.0, -6.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.first is None or self.first_norm is None:
            return torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.first_norm(self.first(x)))
        beside = x if self.projection is None else self.projection_norm(self.projection(x))
        return torch.relu(self.norm(self.conv(x)) + beside)


def wrong(kind: Kind, storage: str, device: torch.device, batch: int = BATCH, height: int = HEIGHT) -> str:
    """Return what the Triton engine gets wrong on a kind's probe, or "".

    storage: float32, float16, bfloat16 or mixed. Raises whatever compiling or launching a kernel raises.
    """
    with tf32.allowed(False):  # else the reference engine's own products would be off by more than is allowed
        return _off(kind, storage, device, batch, height)


def _off(kind: Kind, storage: str, device: torch.device, batch: int, height: int) -> str:
    model = Probe(kind).to(device)
    ours, theirs, exact = fuse(copy.deepcopy(model), "triton"), model, fuse(copy.deepcopy(model), "reference")
    dtype = torch.float16 if storage == "mixed" else getattr(torch, storage)
    for call in range(CALLS):
        draw = torch.Generator().manual_seed(call)
        x = torch.randn(batch, kind.in_channels, height, height, generator=draw).to(device)
        expected = _left(exact, x, "float32")
        ours_left, stock = (
            _left(ours, x, storage),
            _left(theirs, x, "float16" if storage == "mixed" else storage),
        )
        for what, value in expected.items():
            coarsest = torch.bfloat16 if storage == "mixed" and "gradient" in what else dtype
            least = FLOAT32 if dtype == torch.float32 else ROUNDINGS * torch.finfo(coarsest).eps
            most, error = max(least, STOCK * _relative(stock[what], value)), _relative(ours_left[what], value)
            if not error < most:
                off = f"{what} is off by {error:.1e}, allowed {most:.1e}, in call {call + 1}"
                return f"{kind} in {storage}: {off}"
    return ""


def _left(model: nn.Module, x: Tensor, storage: str) -> dict[str, Tensor]:
    """Return what one forward and backward with a random upstream gradient leave behind, in float64."""
    model.zero_grad()
    x = x.clone().requires_grad_(True)
    kind: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if storage == "mixed":
        kind = mixed(torch.bfloat16 if x.is_cuda else torch.float32)  # the interpreter has no bfloat16
    elif storage != "float32":
        kind = torch.autocast(x.device.type, getattr(torch, storage))
    with kind:
        z = model(x)
    z.backward(torch.randn(z.shape, generator=torch.Generator().manual_seed(7)).to(z))
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    statistics = [b.flatten() for b in model.buffers() if b.is_floating_point()]
    left = {"output": z, "gradient": torch.cat(gradients), "statistics": torch.cat(statistics)}
    if x.grad is not None:
        left["input's gradient"] = x.grad
    return {what: value.detach().double() for what, value in left.items()}


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
