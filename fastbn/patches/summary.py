"""A patch's content, and the distance of two patches: figures, and the lines that show them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from typing import Any

import torch

from fastbn import files
from fastbn.files import shown
from fastbn.patches.contents import COUNTER, RUNNING, dtype_name
from fastbn.patches.patch import Patch, read

OTHER = "other parameters"
KINDS = ("γ", "β", *RUNNING, COUNTER, OTHER)
FURTHEST = 5  # tensors that a difference names


@dataclasses.dataclass(frozen=True)
class PatchSummary:
    """A patch's content in figures. str() of it is what `python -m fastbn.patch show` prints.

    path, bytes: the file. network: the class of the network that it was made from
    tensors: by name, dtype and shape. numbers: how many there are of each kind of KINDS
    trains: the names of the parameters that required grad. entries: of how many of whose entries alone
    frozen: the tensors of the base, which it has digests of. sha256: the digest over all of them
    metadata: what was said beside
    """

    path: str
    bytes: int
    network: str
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    numbers: dict[str, int]
    trains: tuple[str, ...]
    entries: dict[str, int]
    frozen: tuple[str, ...]
    sha256: str
    metadata: dict[str, Any]

    def __str__(self) -> str:
        numbers = ", ".join(f"{count:,} {kind}" for kind, count in self.numbers.items() if count)
        some = ", ".join(f"{shown(name, 60)} ({count:,})" for name, count in self.entries.items())
        lines = [
            f"{shown(self.path)}: a patch of {shown(self.network, 80)}, {self.bytes:,} bytes",
            f"  holds     {len(self.tensors):,} tensors: {numbers}",
            f"  trained   {len(self.trains):,} parameters"
            + (f"; of some entries alone: {some}" if some else ""),
            f"  base      {len(self.frozen):,} frozen tensors, SHA-256 {self.sha256}",
        ]
        said = [f"  {shown(key, 60)}: {shown(value)}" for key, value in self.metadata.items()]
        return "\n".join([*lines, *said])


def inspect(path: str | os.PathLike[str]) -> PatchSummary:
    """Return what a patch holds, without the network. Raises UsageError as `apply_patch` for a file that is
    none.

        held = fastbn.inspect("flowers.safetensors")
        print(held, held.metadata["accuracy"])
    """
    patch = read(path)
    status = files.look(path)
    numbers = dict.fromkeys(KINDS, 0)
    for name, t in patch.tensors.items():
        numbers[kind_of(name, patch.tensors)] += t.numel()
    return PatchSummary(
        path=os.fspath(path),
        bytes=status.st_size if status else 0,
        network=patch.network,
        tensors={name: (dtype_name(t.dtype), tuple(t.shape)) for name, t in patch.tensors.items()},
        numbers=numbers,
        trains=patch.trains,
        entries={name: int(mask.sum()) for name, mask in patch.masks.items()},
        frozen=tuple(patch.frozen),
        sha256=patch.sha256,
        metadata=patch.metadata,
    )


def kind_of(name: str, names: Collection[str]) -> str:
    """Return which of KINDS a tensor is; γ and β are a BatchNorm's, or another norm's with both."""
    owner, _, key = name.rpartition(".")
    if key in (*RUNNING, COUNTER):
        return key
    prefix = f"{owner}." if owner else ""
    if key in ("weight", "bias") and f"{prefix}{RUNNING[0]}" in names:
        return "γ" if key == "weight" else "β"
    return OTHER


@dataclasses.dataclass(frozen=True)
class PatchDifference:
    """The distance of a second patch from a first. str() of it is what `python -m fastbn.patch diff` prints.

    same_base: whether their frozen weights are the same
    distance: by kind of KINDS, ‖b − a‖ over all its numbers, and ‖a‖ (Euclidean)
    tensors: by name, ‖b − a‖, the furthest first; of those that both have in one shape
    alone: the names of what one of them alone has, or has in another shape
    """

    same_base: bool
    distance: dict[str, tuple[float, float]]
    tensors: dict[str, float]
    alone: tuple[str, ...]

    def __str__(self) -> str:
        lines = ["the same base" if self.same_base else "of different bases"]
        for kind, (apart, norm) in self.distance.items():
            relative = f"{apart / norm:10.4f}" if norm else " " * 10
            lines.append(f"  {kind:20} ‖b − a‖ {apart:12.6g}   of ‖a‖ {norm:12.6g}   {relative}")
        far = [f"{shown(name, 60)} {apart:.6g}" for name, apart in list(self.tensors.items())[:FURTHEST]]
        if far:
            lines.append(f"  furthest: {', '.join(far)}")
        if self.alone:
            lines.append(
                f"  in one of them alone: {', '.join(shown(name, 60) for name in self.alone[:FURTHEST])}"
            )
        return "\n".join(lines)


def diff_patches(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> PatchDifference:
    """Return how far two patches are apart. Raises UsageError for a file that is none.

    print(fastbn.diff_patches("flowers.safetensors", "birds.safetensors"))
    """
    a, b = read(first), read(second)
    both = [
        name for name, t in a.tensors.items() if comparable(a, b, name) and t.shape == b.tensors[name].shape
    ]
    squares: dict[str, tuple[float, float]] = {}
    apart: dict[str, float] = {}
    for name in both:
        x, y = a.tensors[name].double(), b.tensors[name].double()
        kind = kind_of(name, a.tensors)
        before = squares.get(kind, (0.0, 0.0))
        distance = float((y - x).square().sum()), float(x.square().sum())
        squares[kind] = before[0] + distance[0], before[1] + distance[1]
        apart[name] = distance[0] ** 0.5
    return PatchDifference(
        same_base=a.sha256 == b.sha256 and a.frozen == b.frozen,
        distance={
            kind: (squares[kind][0] ** 0.5, squares[kind][1] ** 0.5) for kind in KINDS if kind in squares
        },
        tensors=dict(sorted(apart.items(), key=lambda item: -item[1])),
        alone=tuple(sorted((a.tensors.keys() | b.tensors.keys()) - set(both))),
    )


def comparable(a: Patch, b: Patch, name: str) -> bool:
    """Return whether both have a tensor, and of a weight the same entries."""
    masks = [patch.masks.get(name, torch.ones(0)) for patch in (a, b)]
    return name in b.tensors and torch.equal(*masks)
