"""A run's settings: one frozen dataclass to and from the command line and JSON. Imports no torch, so --help
is instant.

A field that may be None or "auto" is resolved when the run starts; config.json holds what it was resolved to.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from fastbn import choices, command
from fastbn.data.names import DATASETS, DEFAULT_DIR
from fastbn.errors import UsageError
from fastbn.files import shown
from fastbn.models.families import FAMILIES, NORMS, ONLY_DEPTH, STRIDES
from fastbn.models.init_names import BETA_INITS, GAMMA_INITS, WEIGHT_INITS

Self = TypeVar("Self", bound="Recipe")
FLOAT32_MAX = 3.4e38
MAX_THREADS = 4096
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
MAY_DIFFER = (  # between a run and its resumption
    "memory", "epochs", "out", "data_dir", "download", "weights", "resume", "rank_timeout", "explain", "on",
    "devices", "step_seconds",
    "track",
)  # fmt: skip
# what a resumed run does not take from its config.json: `track` is a module's name, and is asked for again
NOT_SAVED = {
    "out", "resume", "explain", "download", "on", "devices", "step_seconds", "track",
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageErrors: one line, like every other wrong argument."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{shown(message, 300)}; see --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's. Raises UsageError too for a word that no path can be: one that is not UTF-8, or
        has a NUL in it."""
        words = list(sys.argv[1:] if args is None else args)
        for word in words:
            if "\0" in word or any("\ud800" <= c <= "\udfff" for c in word):
                self.error(f"an argument is not UTF-8: {shown(word)}")
        return super().parse_known_args(words, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Shows --help as any result."""
        command.show(message.removesuffix("\n"))


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """A run of `python -m fastbn.train`."""

    depth: int | None = option(
        None, "6n+2 (14, 20, 56, 110, 866, …) or 18, 34, 50, 101, 152, 200; of vgg 11, 13, 16, 19", int
    )
    family: str | None = option(
        None, "a ResNet's is inferred from the depth; 50, 152 and 200 are both", choices=FAMILIES
    )
    width: int | None = option(None, "channels of the first stage; 16 (cifar) or 64 (imagenet, vgg)", int)
    norm: str = option(
        NORMS[0], "what normalises; selu: nothing, SELU in place of BatchNorm and ReLU", choices=NORMS
    )
    norm_eps: float = option(1e-5, "added to the variance", float)
    norm_momentum: float = option(0.1, "of BatchNorm's running statistics: the weight of the new", float)
    conv_bias: bool = option(False, "convolutions with a bias (vgg's and wandb's always have one)", bool)
    stride_on: str = option(STRIDES[0], "the convolution of a bottleneck that strides", choices=STRIDES)
    dataset: str = option(
        "auto", "auto: CIFAR-10 where it is or can be had, else the embedded digits", choices=DATASETS
    )
    data_dir: str = option(
        DEFAULT_DIR, "where the data set lies; the default is also downloaded into", metavar="DIR"
    )
    download: bool = option(False, "download into another --data-dir too", bool)
    augment: str | None = option(
        None, f"{', '.join(choices.AUGMENTATIONS)} joined by +, or none; the data set's own", metavar="HOW"
    )
    pixels: str = option(
        choices.PIXELS[0], "standard: less the mean, by the deviation; unit: 0 to 1", choices=choices.PIXELS
    )
    embedding: int = option(200, "of lstm: the numbers a word", int)
    vectors: str | None = option(
        None, "of lstm: a GloVe text file that the embedding starts from", metavar="FILE"
    )
    train: str = option(
        "bn",
        f"what trains: {', '.join(choices.TRAIN_MODES)}; joined by +, random=2, bn@first-9, bn@layer1",
        metavar="WHAT",
    )
    gamma_init: str = option(GAMMA_INITS[0], "γ", choices=GAMMA_INITS)
    beta_init: str = option(BETA_INITS[0], "β", choices=BETA_INITS)
    weight_init: str = option(WEIGHT_INITS[0], "convolutions and fc", choices=WEIGHT_INITS)
    weights: str | None = option(
        None, "a run's folder, or torchvision-keyed .safetensors or .pth to start from", metavar="RUN|FILE"
    )
    engine: str = option("auto", "what carries the step out", choices=choices.ENGINES)
    exact_conv: bool = option(
        False, "no Winograd on the native engine: slower, and exact to float32's last bits", bool
    )
    device: str = option("auto", "cuda where there is one", choices=choices.DEVICES)
    threads: int | None = option(None, "CPU threads; torch's own choice", int)
    out: str | None = option(
        None, "the run's folder; runs/resnet866-cifar10-bn-s0 and the like", metavar="DIR"
    )
    resume: bool = option(False, "continue the run in --out, bit for bit as if it had never stopped", bool)
    limit_train: int | None = option(None, "train on this many images only", int, metavar="N")
    limit_test: int | None = option(None, "test on this many images only", int, metavar="N")
    val: int | None = option(
        None, "hold this many training images out and keep the best epoch by them", int, metavar="N"
    )
    rank_timeout: float = option(
        300.0, "seconds that ranks wait for one another in a step, and for image readers", float, metavar="S"
    )
    explain: bool = option(False, "print what would run, and why, and exit", bool)
    on: str | None = option(
        None,
        "with --explain: on this device by its data sheet (a100, h100, h200, l40s, rtx4090)",
        metavar="NAME",
    )
    devices: int | None = option(
        None, "with --explain: what so many devices would send each other a step", int, metavar="N"
    )
    step_seconds: float | None = option(
        None, "with --devices: of a step on one device; measured here where not given", float, metavar="S"
    )
    track: str | None = option(
        None, "tell a module that has init, log and finish of every epoch: wandb, trackio", metavar="NAME"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threads", "limit_train", "limit_test", "val", "devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name.replace('_', '-')} must be at least 1, got {value}")
        for name in ("rank_timeout", "step_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name.replace('_', '-')} must be seconds above 0, got {value}")
        if self.on is not None and not self.explain:
            raise UsageError("--on belongs to --explain: it plans for a device that is not here")
        if self.devices is not None and not self.explain:
            raise UsageError(
                "--devices belongs to --explain; to train on many devices start torchrun --nproc-per-node=N "
                "-m fastbn.train …"
            )
        if self.threads is not None and self.threads > MAX_THREADS:
            raise UsageError(f"threads must be at most {MAX_THREADS}, got {self.threads}")
        choices.train_terms(self.train)
        choices.augmentations(self.augment)
        for name in ("norm", "stride_on", "pixels"):
            known = next(f for f in dataclasses.fields(self) if f.name == name).metadata["choices"]
            choices.one_of(name, getattr(self, name), known)

    def asdict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def recipe(self) -> Recipe:
        """The part that says how to train."""
        return Recipe(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)})

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """The settings in which a saved run was another than this one asks for."""
        mine = self.asdict()
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in mine.items()}
        names = [name for name in listed if name not in MAY_DIFFER]
        # of a field that is younger than the run
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        before = {name: saved.get(name, usual[name]) for name in names}
        differing = [name for name in names if before[name] != listed[name]]
        return [
            f"{name}: saved {shown(repr(before[name]), 60)}, asked {shown(repr(listed[name]), 60)}"
            for name in differing
        ]

    def completed_by(self, saved: dict[str, Any]) -> Config:
        """This config, what it leaves open (None, "auto") filled from a saved run."""
        mine = self.asdict()
        known = {f.name for f in dataclasses.fields(self)} - NOT_SAVED
        left_open = {
            name: saved[name] for name in known & saved.keys() if mine[name] is None or mine[name] == "auto"
        }
        if left_open.get("milestones") is not None:
            left_open["milestones"] = tuple(left_open["milestones"])
        return dataclasses.replace(self, **left_open)


def parse(arguments: Sequence[str] | None, program: str, description: str) -> Config:
    """The command line's Config; --help prints and exits. With --resume, what is not given is that of the run
    in --out. Raises UsageError for a wrong argument."""
    parser = Parser(program, description=description)
    recipe = {field.name for field in dataclasses.fields(Recipe)}
    groups = {
        False: parser.add_argument_group("network, data and run"),
        True: parser.add_argument_group("recipe"),
    }
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        settings: dict[str, Any] = {"help": field.metadata["help"]}
        if field.default not in (None, False):
            settings["help"] += f" ({field.default})"
        settings["help"] = settings["help"].replace("%", "%%")
        if field.metadata["kind"] is bool:
            settings |= {"action": "store_true"}
        else:
            settings |= {
                "type": field.metadata["kind"],
                "choices": field.metadata["choices"],
                "metavar": field.metadata["metavar"],
            }
            if field.metadata["choices"] is None and field.metadata["metavar"] is None:
                settings["metavar"] = "N" if field.metadata["kind"] is int else "X"
        groups[field.name in recipe].add_argument(flag, default=argparse.SUPPRESS, **settings)
    given = vars(parser.parse_args(arguments))
    if given.get("resume") and given.get("out"):
        path = Path(given["out"]) / "config.json"
        given = _saved(path) | given
        if "depth" not in given and given.get("family") not in ONLY_DEPTH:
            parser.error(
                f"--resume without --depth needs the settings in {path}, and there are none; give the run's "
                "own arguments"
            )
    if given.get("depth") is None and given.get("family") not in ONLY_DEPTH:
        parser.error("the following arguments are required: --depth")
    return Config(**given)


def _saved(path: Path) -> dict[str, Any]:
    """The settings in a run's config.json; none where nothing of that name lies there, which the run tells
    of."""
    from fastbn.saved import json_file, settings  # which knows this module's fields

    if not os.path.lexists(path):
        return {}
    saved = settings(json_file(path), path)
    names = {field.name for field in dataclasses.fields(Config)} - NOT_SAVED
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in saved.items()
        if name in names
    }
