"""The settings of a training, as asked (`Recipe`) and with nothing left open (`ResolvedRecipe`). Imports no
torch."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastbn import choices
from fastbn.cli.options import option
from fastbn.errors import UsageError
from fastbn.files import shown

FLOAT32_MAX = 3.4e38
MOST = {
    "epochs": 1_000_000,
    "batch_size": 1 << 24,
    "bn_batch": 1 << 24,
    "warmup_epochs": 1_000_000,
    "seed": 2**63 - 1,
}
ABOVE = ("lr", "memory")  # what must not be 0
NOTHING: Mapping[str, Any] = MappingProxyType({})
BATCH = 128  # the paper's


def epoch_list(text: str) -> tuple[int, ...]:
    """Return the epochs that a word of the command line lists, as in 80,120. Raises
    argparse.ArgumentTypeError for any other."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be epochs separated by commas, as in 80,120; got {text!r}"
        ) from None


def batch_number(text: str) -> int | str:
    """Return the batch size that a word of the command line says: a number, or "auto". Raises
    argparse.ArgumentTypeError for any other."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number of images, or auto; got {text!r}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a training. The defaults are the paper's (its public code's)."""

    epochs: int | None = option(
        None, "passes over the training set; 160, or the data set's own number", int, group="recipe"
    )
    batch_size: int | str | None = option(
        None,
        "images a step; 128, or the data set's own; auto: the smallest of the fastest, measured",
        batch_number,
        metavar="N",
        group="recipe",
    )
    bn_batch: int | None = option(
        None,
        "ghost batch norm: statistics over slices of so many images; another model",
        int,
        group="recipe",
    )
    optimizer: str = option(
        "sgd", "over γ, β and whatever else trains", choices=choices.OPTIMIZERS, group="recipe"
    )
    lr: float | None = option(
        None,
        "learning rate; 0.1 for sgd, 0.001 for adam, scaled with --batch-size auto",
        float,
        group="recipe",
    )
    momentum: float = option(0.9, "of SGD", float, group="recipe")
    nesterov: bool = option(False, "Nesterov's momentum", bool, group="recipe", advanced=True)
    weight_decay: float = option(1e-4, "on everything that trains, γ and β too", float, group="recipe")
    schedule: str = option("multistep", "of the learning rate", choices=choices.SCHEDULES, group="recipe")
    milestones: tuple[int, ...] | None = option(
        None,
        "epochs at which multistep divides it by ten; half and three quarters of the epochs",
        epoch_list,
        metavar="80,120",
        group="recipe",
    )
    warmup_epochs: int | None = option(
        None, "epochs of linear warm-up; none, or the data set's own", int, group="recipe"
    )
    bn_stats: str = option(
        "batch",
        "statistics that BatchNorm normalises by in training",
        choices=choices.BN_STATS,
        group="recipe",
    )
    sync_bn: bool = option(
        False,
        "those of all ranks' batches together, not each rank's own",
        bool,
        group="recipe",
        advanced=True,
    )
    precision: str = option(
        "auto", "arithmetic; fp32 never means TF32", choices=choices.PRECISIONS, group="machine"
    )
    memory: float | None = option(
        None,
        "GB of the device's memory that the run may take; what is free",
        float,
        metavar="GB",
        group="machine",
    )
    seed: int = option(0, "of the weights, the order, the augmentation", int, group="recipe")

    def __post_init__(self) -> None:
        for name in ("optimizer", "schedule", "bn_stats", "precision"):
            choices.one_of(
                name,
                getattr(self, name),
                next(f for f in dataclasses.fields(self) if f.name == name).metadata["option"].choices,
            )
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("bn_batch", 2),
            ("warmup_epochs", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is None or (name, value) == ("batch_size", "auto"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(
                    f"{name} must be an integer of at least {least}, got {shown(repr(value), 60)}"
                )
            if value > MOST[name]:
                raise UsageError(f"{name} must be at most {MOST[name]:,}, got {shown(value, 60)}")
        numbers = (
            ("lr", 0, FLOAT32_MAX),
            ("momentum", 0, 1),
            ("weight_decay", 0, FLOAT32_MAX),
            ("memory", 0, FLOAT32_MAX),
        )
        for name, low, high in numbers:
            value = getattr(self, name)
            if value is not None and not (
                isinstance(value, (int, float)) and low <= value < high and (value or name not in ABOVE)
            ):
                bound = f"{'above' if name in ABOVE else 'of at least'} {low}"
                raise UsageError(
                    f"{name} must be a number {bound}, below {high}, got {shown(repr(value), 60)}"
                )
        if self.sync_bn and self.bn_batch is not None:
            raise UsageError(
                "--sync-bn is BatchNorm over the whole batch, --bn-batch over slices of it; give one of them"
            )
        if self.milestones is not None and list(self.milestones) != sorted(set(self.milestones)):
            raise UsageError(f"milestones must be increasing epochs, got {shown(self.milestones, 60)}")

    def resolved(
        self,
        default_epochs: int,
        precision: str = "fp32",
        usual: Mapping[str, Any] = NOTHING,
        batch: int | None = None,
    ) -> ResolvedRecipe:
        """Return the recipe with nothing left open.

        default_epochs: of the data set. precision: what "auto" means here. usual: what this data set's
        studies use in place of the defaults. batch: the size that a batch size of "auto" was measured to
        be; a learning rate that was not given is then scaled from the usual batch: linearly for SGD, with
        five epochs of warm-up (Goyal et al. 2017), by the square root for Adam (Krizhevsky 2014).
        """
        epochs, usual_batch = self.epochs or default_epochs, usual.get("batch_size", BATCH)
        milestones = self.milestones
        if milestones is None and epochs == default_epochs:
            milestones = usual.get("milestones")
        if milestones is None:
            milestones = tuple(sorted({epochs // 2, epochs * 3 // 4} - {0}))
        size, ratio = self.batch_size or usual_batch, 1.0
        if isinstance(size, str):
            size = usual_batch if batch is None else batch
            ratio = size / usual_batch
        sgd = self.optimizer == "sgd"
        lr = (usual.get("lr", 0.1) if sgd else 0.001) * (ratio if sgd else ratio**0.5)
        warmup = usual.get("warmup_epochs", 0)
        if sgd and ratio > 1 and self.lr is None:
            warmup = max(warmup, min(5, epochs // 2))
        return ResolvedRecipe(
            epochs=epochs,
            batch_size=size,
            bn_batch=self.bn_batch,
            optimizer=self.optimizer,
            lr=lr if self.lr is None else self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            milestones=milestones,
            warmup_epochs=warmup if self.warmup_epochs is None else self.warmup_epochs,
            bn_stats=self.bn_stats,
            sync_bn=self.sync_bn,
            precision=precision if self.precision == "auto" else self.precision,
            memory=self.memory,
            seed=self.seed,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedRecipe:
    """The settings of a training, with nothing left open; the fields are those of `Recipe`.

    bn_batch: None, BatchNorm is over the whole batch. memory: GB that the run may take; None, what is free.
    """

    epochs: int
    batch_size: int
    bn_batch: int | None
    optimizer: str
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: str
    milestones: tuple[int, ...]
    warmup_epochs: int
    bn_stats: str
    sync_bn: bool
    precision: str
    memory: float | None
    seed: int
