"""How to train: one frozen dataclass, whose fields say what a command line says of them. Imports no torch."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from fastbn import choices
from fastbn.errors import UsageError
from fastbn.files import shown

Self = TypeVar("Self", bound="Recipe")
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
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be epochs separated by commas, as in 80,120; got {text!r}"
        ) from None


def batch_number(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number of images, or auto; got {text!r}") from None


def option(
    default: Any, help: str, kind: Any = str, choices: Sequence[str] | None = None, metavar: str | None = None
) -> Any:
    """A field with what the command line says of it."""
    return dataclasses.field(
        default=default, metadata={"help": help, "kind": kind, "choices": choices, "metavar": metavar}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. The defaults are the paper's (its public code's)."""

    epochs: int | None = option(None, "passes over the training set; 160, or the data set's own number", int)
    batch_size: int | str | None = option(
        None,
        "images a step; 128, or the data set's own; auto: the smallest of the fastest, measured",
        batch_number,
        metavar="N",
    )
    bn_batch: int | None = option(
        None, "ghost batch norm: statistics over slices of so many images; another model", int
    )
    optimizer: str = option("sgd", "over γ, β and whatever else trains", choices=choices.OPTIMIZERS)
    lr: float | None = option(
        None, "learning rate; 0.1 for sgd, 0.001 for adam, scaled with --batch-size auto", float
    )
    momentum: float = option(0.9, "of SGD", float)
    nesterov: bool = option(False, "Nesterov's momentum", bool)
    weight_decay: float = option(1e-4, "on everything that trains, γ and β too", float)
    schedule: str = option("multistep", "of the learning rate", choices=choices.SCHEDULES)
    milestones: tuple[int, ...] | None = option(
        None,
        "epochs at which multistep divides it by ten; half and three quarters of the epochs",
        epoch_list,
        metavar="80,120",
    )
    warmup_epochs: int | None = option(None, "epochs of linear warm-up; none, or the data set's own", int)
    bn_stats: str = option(
        "batch", "statistics that BatchNorm normalises by in training", choices=choices.BN_STATS
    )
    sync_bn: bool = option(False, "those of all ranks' batches together, not each rank's own", bool)
    precision: str = option("auto", "arithmetic; fp32 never means TF32", choices=choices.PRECISIONS)
    memory: float | None = option(
        None, "GB of the device's memory that the run may take; what is free", float, metavar="GB"
    )
    seed: int = option(0, "of the weights, the order, the augmentation", int)

    def __post_init__(self) -> None:
        for name in ("optimizer", "schedule", "bn_stats", "precision"):
            choices.one_of(
                name,
                getattr(self, name),
                next(f for f in dataclasses.fields(self) if f.name == name).metadata["choices"],
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

    @property
    def batch(self) -> int:
        """The batch size of a resolved recipe."""
        assert isinstance(self.batch_size, int)
        return self.batch_size

    def resolved(
        self: Self, default_epochs: int, precision: str = "fp32", usual: Mapping[str, Any] = NOTHING
    ) -> Self:
        """The same recipe with nothing left open but a batch size of "auto", and with it a learning rate that
        was not given. `precision` is what auto means here; `usual` what this data set's studies use instead
        of the defaults."""
        epochs = self.epochs or default_epochs
        milestones = (
            self.milestones
            if self.milestones is not None
            else usual.get("milestones")
            if epochs == default_epochs
            else None
        )
        found = dataclasses.replace(
            self,
            epochs=epochs,
            batch_size=self.batch_size or usual.get("batch_size", BATCH),
            milestones=milestones
            if milestones is not None
            else tuple(sorted({epochs // 2, epochs * 3 // 4} - {0})),
            precision=precision if self.precision == "auto" else self.precision,
        )
        return found if found.batch_size == "auto" else found.with_batch(found.batch, usual)

    def with_batch(self: Self, batch: int, usual: Mapping[str, Any] = NOTHING) -> Self:
        """The recipe at this batch size. Where it was to be measured, a learning rate that was not given is
        scaled from the usual batch: linearly for SGD, with five epochs of warm-up (Goyal et al. 2017), by the
        square root for Adam (Krizhevsky 2014)."""
        lr = usual.get("lr", 0.1) if self.optimizer == "sgd" else 0.001
        ratio = batch / usual.get("batch_size", BATCH) if self.batch_size == "auto" else 1.0
        scaled = lr * (ratio if self.optimizer == "sgd" else ratio**0.5)
        warmup = usual.get("warmup_epochs", 0)
        if self.optimizer == "sgd" and ratio > 1 and self.lr is None:
            warmup = max(warmup, min(5, (self.epochs or 0) // 2))
        given = self.warmup_epochs is not None
        return dataclasses.replace(
            self,
            batch_size=batch,
            lr=scaled if self.lr is None else self.lr,
            warmup_epochs=self.warmup_epochs if given else warmup,
        )
