"""The settings that a network is made from: its family, what a depth means in it, and the errors for a depth
that is none.

Source   He et al. 2015, Deep Residual Learning: table 1 (ImageNet) and section 4.2 (CIFAR); 200: He et al.
         2016, Identity Mappings; Simonyan, Zisserman 2014, Very Deep Convolutional Networks (VGG).
Imports no torch.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, SupportsIndex, cast

from fastbn.choices import one_of
from fastbn.cli.options import Option
from fastbn.errors import UsageError
from fastbn.files import shown
from fastbn.models.init_names import BETA_INITS, GAMMA_INITS, WEIGHT_INITS

HOMES = {  # a family -> the class of its networks, imported when one is made
    "cifar": "fastbn.models.resnet:FastBNOnlyResNet",
    "imagenet": "fastbn.models.resnet:FastBNOnlyResNet",
    "vgg": "fastbn.models.vgg:VGG",
}
NORMS = ("batch", "instance", "group", "selu")
STRIDES = ("3x3", "1x1")
VGG_DEPTHS = (11, 13, 16, 19)
ONLY_DEPTH: dict[str, int] = {}  # of a family of one network
TITLES = {"cifar": "ResNet", "imagenet": "ResNet", "vgg": "VGG"}
BIASED = {"vgg"}  # families whose convolutions have a bias, whatever is asked
ONLY_BATCH: set[str] = set()  # families that have no norm but batch
NO_CONVOLUTIONS: set[str] = set()  # families that an engine has nothing to do in
WORDS: set[str] = set()  # families that read words; the others read images
OPTIONS: dict[str, dict[str, Option]] = {}  # of a family: the settings that belong to it alone, by name
NO_OPTIONS: Mapping[str, Option] = MappingProxyType({})
IMAGENET = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
}
# channels or units of the first stage
WIDTH = {"cifar": 16, "imagenet": 64, "vgg": 64}
MOST = {
    "depth": 5_000,
    "width": 8_192,
    "num_classes": 1_000_000,
    "vocabulary": 10_000_000,
    "embedding": 65_536,
}
MOST_PARAMETERS = 1 << 31  # of a network, with its frozen weights: 8 GB of float32
CIFAR_DEPTHS = "6n+2 (14, 20, 56, 110, 866, …)"
IMAGENET_DEPTHS = "one of " + ", ".join(map(str, IMAGENET))


def register(
    family: str,
    home: str,
    title: str,
    depth: int,
    width: int,
    biased: bool = False,
    only_batch: bool = False,
    convolutions: bool = True,
    words: bool = False,
    options: Mapping[str, Option] = NO_OPTIONS,
) -> None:
    """Add a family of one network, as a study that needs one does.

    home: "module:class" of its networks; depth: the only one; width: of its first stage; biased: its
    convolutions have a bias; only_batch: no other norm goes with it; convolutions: whether it has any; words:
    it reads words, not images; options: the settings that a command line takes for it alone.
    """
    HOMES[family], TITLES[family], ONLY_DEPTH[family], WIDTH[family] = home, title, depth, width
    OPTIONS[family] = dict(options)
    for having, families in (
        (biased, BIASED),
        (only_batch, ONLY_BATCH),
        (not convolutions, NO_CONVOLUTIONS),
        (words, WORDS),
    ):
        if having:
            families.add(family)


@dataclasses.dataclass(frozen=True)
class Spec:
    """The settings of a model, all resolved: equal specs are equal models, bit for bit (`orthogonal`: on one
    machine)."""

    depth: int
    num_classes: int
    width: int
    family: str
    seed: int
    gamma_init: str
    beta_init: str
    weight_init: str
    norm: str = "batch"
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    conv_bias: bool = False
    stride_on: str = "3x3"
    vocabulary: int = 0  # of lstm alone: the words it knows
    embedding: int = 200  # of lstm alone: the numbers a word

    def said(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        usual = {
            field.name: field.default
            for field in dataclasses.fields(self)
            if field.default is not dataclasses.MISSING
        }
        return {
            name: value for name, value in self.asdict().items() if name not in usual or value != usual[name]
        }

    def asdict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def title(self) -> str:
        """Return its name as a person would say it."""
        name, depth = TITLES[self.family], "" if self.family in ONLY_DEPTH else f"-{self.depth}"
        plain = f"{name}{depth}" + (" (imagenet)" if self.family == "imagenet" else "")
        return (
            plain
            if self.norm == "batch"
            else f"{plain} with {self.norm.upper() if self.norm == 'selu' else self.norm + ' norm'}"
        )

    @property
    def block(self) -> str:
        """Return the kind of its blocks: two 3×3 convolutions are "basic"; 1×1, 3×3, 1×1 are a
        "bottleneck"."""
        return "basic" if self.family == "cifar" else IMAGENET[self.depth][0]

    @property
    def blocks(self) -> tuple[int, ...]:
        """Return the number of residual blocks in each stage."""
        return ((self.depth - 2) // 6,) * 3 if self.family == "cifar" else IMAGENET[self.depth][1]


def resolve(
    depth: int | None,
    num_classes: int = 10,
    width: int | None = None,
    family: str | None = None,
    seed: int = 0,
    gamma_init: str = GAMMA_INITS[0],
    beta_init: str = BETA_INITS[0],
    weight_init: str = WEIGHT_INITS[0],
    *,
    norm: str = NORMS[0],
    norm_eps: float = 1e-5,
    norm_momentum: float = 0.1,
    conv_bias: bool = False,
    stride_on: str = STRIDES[0],
    vocabulary: int = 0,
    embedding: int = 200,
) -> Spec:
    """Return the Spec that these arguments ask for: the family inferred from the depth, or the depth of a
    family that has one; the width from the family.

    norm: "selu" is none, with SELU in place of ReLU; mlp and lstm have "batch" alone. norm_momentum is
    torch's: the weight of the new.
    conv_bias: convolutions with a bias, in a ResNet. stride_on: the convolution of a bottleneck that strides.
    Raises UsageError.
    """
    if depth is None:
        if family not in ONLY_DEPTH:
            raise UsageError(f"a {family or 'ResNet'} needs a depth: {_depths(family)}")
        depth = ONLY_DEPTH[family]
    depth = _integer("depth", depth, 1)
    family = _family(depth, family)
    if norm != "batch" and family in ONLY_BATCH:
        raise UsageError(
            f"the family {family} has norm batch alone, got {norm!r}; cifar, imagenet, vgg and wandb have "
            f"{', '.join(NORMS)}"
        )
    return Spec(
        depth=depth,
        num_classes=_integer("num_classes", num_classes, 1),
        width=WIDTH[family] if width is None else _integer("width", width, 1),
        family=family,
        seed=_integer("seed", seed, 0),
        gamma_init=one_of("gamma_init", gamma_init, GAMMA_INITS),
        beta_init=one_of("beta_init", beta_init, BETA_INITS),
        weight_init=one_of("weight_init", weight_init, WEIGHT_INITS),
        norm=one_of("norm", norm, NORMS),
        norm_eps=_number("norm_eps", norm_eps),
        norm_momentum=_number("norm_momentum", norm_momentum),
        conv_bias=bool(conv_bias) or family in BIASED,
        stride_on=one_of("stride_on", stride_on, STRIDES),
        vocabulary=_integer("vocabulary", vocabulary, 0),
        embedding=_integer("embedding", embedding, 1),
    )


def _depths(family: str | None) -> str:
    known = {
        "cifar": CIFAR_DEPTHS,
        "imagenet": IMAGENET_DEPTHS,
        "vgg": "one of " + ", ".join(map(str, VGG_DEPTHS)),
    }
    return known.get(family or "", f"{CIFAR_DEPTHS} or {IMAGENET_DEPTHS}")


def _family(depth: int, family: str | None) -> str:
    is_cifar, is_imagenet = depth >= 8 and depth % 6 == 2, depth in IMAGENET
    cifar = max(8, 6 * round((depth - 2) / 6) + 2)
    imagenet = min(IMAGENET, key=lambda known: abs(known - depth))
    if family is None:
        if is_cifar and is_imagenet:
            raise UsageError(
                f"depth {depth} is both a CIFAR ResNet (6n+2 with n={depth // 6}, basic blocks) and an "
                "ImageNet ResNet (bottlenecks); "
                'say which with family="cifar" or family="imagenet"'
            )
        if not (is_cifar or is_imagenet):
            near = f"{cifar} (cifar), {imagenet} (imagenet)"
            raise UsageError(
                f"depth must be {CIFAR_DEPTHS} or {IMAGENET_DEPTHS}, got {depth}; nearest: {near}"
            )
        return "cifar" if is_cifar else "imagenet"
    family = one_of("family", family, tuple(HOMES))
    if family not in ("cifar", "imagenet"):
        known = VGG_DEPTHS if family == "vgg" else (ONLY_DEPTH[family],)
        if depth not in known:
            nearest = min(known, key=lambda one: abs(one - depth))
            raise UsageError(
                f"depth must be one of {', '.join(map(str, known))} for family={family!r}, got {depth}; "
                f"nearest: {nearest}"
            )
        return family
    if family == "cifar" and not is_cifar:
        raise UsageError(f"depth must be {CIFAR_DEPTHS} for family='cifar', got {depth}; nearest: {cifar}")
    if family == "imagenet" and not is_imagenet:
        raise UsageError(
            f"depth must be {IMAGENET_DEPTHS} for family='imagenet', got {depth}; nearest: {imagenet}"
        )
    return family


def _integer(what: str, value: object, least: int) -> int:
    """Return an integer; numpy's are taken too; a bool, a float or a string is a mistake somewhere else."""
    try:
        number = operator.index(cast(SupportsIndex, value))
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise UsageError(f"{what} must be an integer of at least {least}, got {shown(repr(value), 60)}")
    if number > MOST.get(what, number):
        raise UsageError(f"{what} must be at most {MOST[what]:,}, got {shown(number, 60)}")
    return number


def _number(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise UsageError(f"{what} must be a number above 0, at most 1, got {shown(repr(value), 60)}")
    return float(value)
