"""Cases: the networks that are measured, and the grids of them.

`tiny` is for tests, `default` ends in under four minutes on two CPU cores, `full` wants a GPU, or
patience."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from fastbn import FastBNOnlyResNet
from fastbn.data.feed import Resident
from fastbn.data.images import Images
from fastbn.errors import UsageError
from fastbn.models.families import resolve

# the shortest numbers that a gradient of this precision passes
STORED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "mixed": torch.bfloat16}
STORED |= {f"amp-{name}": STORED[name] for name in ("fp16", "bf16")}


def pixels(count: int, size: int) -> Images:
    """Return a data set of so many square images drawn from a fixed seed, of ten classes."""
    draw = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=draw)
    return Images(drawn, torch.arange(count) % 10)


def feed(count: int, size: int, device: torch.device, seed: int = 0) -> Resident:
    """Return such images as a training step reads them on this device, the first epoch begun."""
    found = Resident(pixels(count, size).to(device))
    found.begin(seed, 0)
    return found


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, its images, and what arithmetic its step may use: "fp32" (never TF32), "bf16" by autocast,
    or "mixed", for whoever mixes best on CUDA."""

    depth: int
    batch_size: int
    size: int = 32
    family: str | None = None
    width: int | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        spec = resolve(self.depth, width=self.width, family=self.family)
        object.__setattr__(self, "family", spec.family)
        object.__setattr__(self, "width", spec.width)

    @property
    def title(self) -> str:
        image = f"{self.size}×{self.size}, batch {self.batch_size}"
        return f"ResNet-{self.depth}, width {self.width}, {image}, {self.precision}"

    @property
    def key(self) -> str:
        """Return a short name for a test's id."""
        return f"{self.depth}-w{self.width}-{self.size}px-b{self.batch_size}-{self.precision}"

    def network(self, seed: int = 0) -> nn.Module:
        """Return the network on the stock path, frozen but for BatchNorm, the same bits each time."""
        own = {"family": self.family, "width": self.width}
        return FastBNOnlyResNet(self.depth, **own, seed=seed, engine="stock")

    def inputs(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (N, 3, H, W) and labels (N,), the same for every provider."""
        draw = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch_size, 3, self.size, self.size, generator=draw)
        return images.to(device), torch.randint(0, 10, (self.batch_size,), generator=draw).to(device)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The kernel level's case: the operations of an identity block of this many channels."""

    channels: int
    size: int
    batch_size: int
    precision: str = "fp32"

    @property
    def key(self) -> str:
        return f"{self.channels}x{self.size}-b{self.batch_size}-{self.precision}"

    @property
    def title(self) -> str:
        return f"{self.channels} channels, {self.size}×{self.size}, batch {self.batch_size}, {self.precision}"


@dataclasses.dataclass(frozen=True)
class Run:
    """Epochs of the embedded digits."""

    depth: int
    epochs: int
    batch_size: int
    width: int | None = None
    limit: int | None = None  # of the training images

    @property
    def key(self) -> str:
        return f"{self.depth}-{self.epochs}x-b{self.batch_size}"

    @property
    def title(self) -> str:
        epochs = f"{self.epochs} epoch{'s' * (self.epochs > 1)}"
        images = "" if self.limit is None else f"{self.limit} images of "
        return f"ResNet-{self.depth}, {images}the digits, {epochs}, batch {self.batch_size}"


@dataclasses.dataclass(frozen=True)
class Grid:
    """The cases of each level, and how long they may take."""

    blocks: tuple[Blocks, ...]
    steps: tuple[Case, ...]
    compiled: tuple[Case, ...]  # those of the steps at which torch.compile takes part too
    scaling: dict[str, tuple[Case, ...]]  # by the field that grows
    # whose peak fresh processes measure; on a CPU alone, a GPU's allocator tells at once
    memory: tuple[Case, ...]
    runs: tuple[Run, ...]
    rounds: int
    most_seconds: float  # of rounds a case


def _grow(base: Case, **values: tuple[Any, ...]) -> dict[str, tuple[Case, ...]]:
    return {
        field: tuple(dataclasses.replace(base, **{field: value}) for value in grown)
        for field, grown in values.items()
    }


def grid(name: str, device: torch.device) -> Grid:
    """Return the grid of this name for a device. Raises UsageError for an unknown name."""
    if name == "tiny":
        steps = (Case(8, 4, 8, width=8),)
        scaling = _grow(Case(8, 2, 8, width=8), batch_size=(2, 4, 8))
        return Grid((Blocks(8, 8, 2),), steps, (), scaling, (), (Run(8, 1, 32, 4, 64),), 3, 1.0)
    if name == "default":
        blocks = tuple(Blocks(channels, size, 128) for channels, size in ((16, 32), (32, 16), (64, 8)))
        cifar = tuple(Case(depth, 128) for depth in (32, 56))
        grown = {"depth": (8, 14, 26, 50), "batch_size": (8, 16, 32, 64), "width": (8, 16, 32, 64)}
        scaling = _grow(Case(14, 32), **grown)
        compiled = () if device.type == "cpu" else cifar
        half = (Case(32, 128, precision="bf16"),) if device.type == "cpu" else ()
        steps = (*cifar, Case(14, 128, width=64), Case(18, 16, 64), *half)
        memory = (Case(32, 128), Case(18, 16, 64))
        found = Grid(blocks, steps, compiled, scaling, memory, (Run(14, 8, 32),), 12, 20.0)
    elif name == "full":
        small, large = ((16, 32), (32, 16), (64, 8)), ((64, 56), (128, 28), (256, 14), (512, 7))
        blocks = tuple(Blocks(*shape, batch) for batch in (128, 1024) for shape in small)
        blocks += tuple(Blocks(*shape, 64) for shape in large)
        steps = tuple(Case(depth, 128) for depth in (14, 32, 56, 110, 866))
        steps += (Case(18, 64, 224), Case(50, 64, 224, "imagenet"))
        depths, widths = (14, 26, 56, 110, 218, 434, 866), (16, 32, 64, 128, 256, 512)
        scaling = _grow(Case(14, 128), depth=depths, width=widths)
        scaling |= _grow(Case(56, 128), batch_size=(32, 64, 128, 256, 512, 1024, 2048))
        runs = (Run(14, 20, 16), Run(56, 20, 128))
        memory = (Case(56, 128), Case(18, 16, 64))
        found = Grid(blocks, steps, steps, scaling, memory, runs, 25, 60.0)
    else:
        raise UsageError(f"--grid must be tiny, default or full, got {name!r}")
    return found if device.type == "cpu" else _mixed_too(found)


def _mixed_too(found: Grid) -> Grid:
    """Add each step in mixed precision and each block in bfloat16, where a GPU's stock training is at its
    best; curves in mixed alone."""

    def mixed(case: Case) -> Case:
        return dataclasses.replace(case, precision="mixed")

    return dataclasses.replace(
        found,
        blocks=(*found.blocks, *(dataclasses.replace(each, precision="bf16") for each in found.blocks)),
        steps=(*found.steps, *map(mixed, found.steps)),
        compiled=(*found.compiled, *map(mixed, found.compiled)),
        scaling={field: tuple(map(mixed, cases)) for field, cases in found.scaling.items()},
        memory=(),
    )
