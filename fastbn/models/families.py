"""What a depth means: the two families of ResNet, the blocks of each stage, and the errors for a depth that is neither.

Source   He et al. 2015, Deep Residual Learning: table 1 (ImageNet) and section 4.2 (CIFAR); 200: He et al. 2016, Identity Mappings.
Imports no torch.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, SupportsIndex, cast

from fastbn.choices import one_of
from fastbn.errors import UsageError
from fastbn.models.inits import BETA_INITS, GAMMA_INITS, WEIGHT_INITS

FAMILIES = ("cifar", "imagenet")
IMAGENET = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
}
WIDTH = {"cifar": 16, "imagenet": 64}  # channels of the first stage, doubled at each later one
CIFAR_DEPTHS = "6n+2 (14, 20, 56, 110, 866, …)"
IMAGENET_DEPTHS = "one of " + ", ".join(map(str, IMAGENET))


@dataclasses.dataclass(frozen=True)
class Spec:
    """Everything a model is made from, resolved: equal specs are equal models, bit for bit (`orthogonal`: on one machine)."""

    depth: int
    num_classes: int
    width: int
    family: str
    seed: int
    gamma_init: str
    beta_init: str
    weight_init: str

    def asdict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def block(self) -> str:
        """Two 3×3 convolutions are "basic"; 1×1, 3×3, 1×1 are a "bottleneck"."""
        return "basic" if self.family == "cifar" else IMAGENET[self.depth][0]

    @property
    def blocks(self) -> tuple[int, ...]:
        """The number of residual blocks in each stage."""
        return ((self.depth - 2) // 6,) * 3 if self.family == "cifar" else IMAGENET[self.depth][1]


def resolve(
    depth: int,
    num_classes: int = 10,
    width: int | None = None,
    family: str | None = None,
    seed: int = 0,
    gamma_init: str = GAMMA_INITS[0],
    beta_init: str = BETA_INITS[0],
    weight_init: str = WEIGHT_INITS[0],
) -> Spec:
    """The Spec that these arguments ask for: the family inferred from the depth, the width from the family. Raises UsageError."""
    depth = _integer("depth", depth, 1)
    family = _family(depth, family)
    return Spec(
        depth=depth,
        num_classes=_integer("num_classes", num_classes, 1),
        width=WIDTH[family] if width is None else _integer("width", width, 1),
        family=family,
        seed=_integer("seed", seed, 0),
        gamma_init=one_of("gamma_init", gamma_init, GAMMA_INITS),
        beta_init=one_of("beta_init", beta_init, BETA_INITS),
        weight_init=one_of("weight_init", weight_init, WEIGHT_INITS),
    )


def _family(depth: int, family: str | None) -> str:
    is_cifar, is_imagenet = depth >= 8 and depth % 6 == 2, depth in IMAGENET
    cifar = max(8, 6 * round((depth - 2) / 6) + 2)
    imagenet = min(IMAGENET, key=lambda known: abs(known - depth))
    if family is None:
        if is_cifar and is_imagenet:
            raise UsageError(
                f"depth {depth} is both a CIFAR ResNet (6n+2 with n={depth // 6}, basic blocks) and an ImageNet ResNet (bottlenecks); "
                'say which with family="cifar" or family="imagenet"'
            )
        if not (is_cifar or is_imagenet):
            near = f"{cifar} (cifar), {imagenet} (imagenet)"
            raise UsageError(f"depth must be {CIFAR_DEPTHS} or {IMAGENET_DEPTHS}, got {depth}; nearest: {near}")
        return "cifar" if is_cifar else "imagenet"
    family = one_of("family", family, FAMILIES)
    if family == "cifar" and not is_cifar:
        raise UsageError(f"depth must be {CIFAR_DEPTHS} for family='cifar', got {depth}; nearest: {cifar}")
    if family == "imagenet" and not is_imagenet:
        raise UsageError(f"depth must be {IMAGENET_DEPTHS} for family='imagenet', got {depth}; nearest: {imagenet}")
    return family


def _integer(what: str, value: object, least: int) -> int:
    """numpy's integers are taken too; a bool, a float or a string is a mistake somewhere else."""
    try:
        number = operator.index(cast(SupportsIndex, value))
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise UsageError(f"{what} must be an integer of at least {least}, got {value!r}")
    return number
