"""A run's settings as they are asked: one frozen dataclass to and from the command line and JSON. Imports no
torch, so that --help is instant.

A field that is None or "auto" is left open; `fastbn.run.resolve` makes a `ResolvedRun` of it, in which
nothing is, and config.json holds that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastbn import choices
from fastbn.cli.options import Option, option
from fastbn.data.names import DATASETS, DEFAULT_DIR, EMBEDDED
from fastbn.errors import UsageError
from fastbn.files import shown
from fastbn.models.families import HOMES, NORMS, OPTIONS, STRIDES
from fastbn.models.init_names import BETA_INITS, GAMMA_INITS, WEIGHT_INITS
from fastbn.recipe import NOTHING, Recipe

MAX_THREADS = 4096
MAY_DIFFER = (  # between a run and its resumption
    "memory", "epochs", "out", "data_dir", "download", "weights", "resume", "rank_timeout", "explain", "on",
    "devices", "step_seconds",
    "track", "no_self_check",
)  # fmt: skip
# what a file may say is a name that the program knows, or a number; a path to read is asked for again, as is
# a module, `track`
PATHS = ("data_dir", "weights", "vectors")
NOT_SAVED = {
    "out", "resume", "explain", "download", "on", "devices", "step_seconds", "track", "no_self_check", *PATHS,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """A run of `python -m fastbn.train`, as asked. `study`: the settings that belong to one family alone, by
    name, where they differ from their defaults; see `families.register`."""

    depth: int | None = option(
        None,
        "6n+2 (14, 20, 56, 110, 866, …) or 18, 34, 50, 101, 152, 200; of vgg 11, 13, 16, 19",
        int,
        group="network",
    )
    family: str | None = option(
        None,
        "a ResNet's is inferred from the depth; 50, 152 and 200 are both",
        choices=tuple(HOMES),
        group="network",
    )
    width: int | None = option(
        None, "channels of the first stage; 16 (cifar) or 64 (imagenet, vgg)", int, group="network"
    )
    norm: str = option(
        NORMS[0],
        "what normalises; selu: nothing, SELU in place of BatchNorm and ReLU",
        choices=NORMS,
        group="network",
        advanced=True,
    )
    norm_eps: float = option(1e-5, "added to the variance", float, group="network", advanced=True)
    norm_momentum: float = option(
        0.1, "of BatchNorm's running statistics: the weight of the new", float, group="network", advanced=True
    )
    conv_bias: bool = option(
        False,
        "convolutions with a bias (vgg's and wandb's always have one)",
        bool,
        group="network",
        advanced=True,
    )
    stride_on: str = option(
        STRIDES[0],
        "the convolution of a bottleneck that strides",
        choices=STRIDES,
        group="network",
        advanced=True,
    )
    dataset: str = option(
        "auto",
        "auto: CIFAR-10 where it is or can be had, else the embedded digits",
        choices=DATASETS,
        group="data",
    )
    data_dir: str | None = option(
        None,
        f"where the data set lies; {DEFAULT_DIR}, which is also downloaded into",
        metavar="DIR",
        group="data",
    )
    download: bool = option(False, "download into another --data-dir too", bool, group="data")
    augment: str | None = option(
        None,
        f"{', '.join(choices.AUGMENTATIONS)} joined by +, or none; the data set's own",
        metavar="HOW",
        group="data",
    )
    pixels: str = option(
        choices.PIXELS[0],
        "standard: less the mean, by the deviation; unit: 0 to 1",
        choices=choices.PIXELS,
        group="data",
        advanced=True,
    )
    study: tuple[tuple[str, Any], ...] = ()
    train: str = option(
        "bn",
        f"what trains: {', '.join(choices.TRAIN_MODES)}; joined by +, random=2, bn@first-9, bn@layer1",
        metavar="WHAT",
        group="network",
    )
    gamma_init: str = option(GAMMA_INITS[0], "γ", choices=GAMMA_INITS, group="network")
    beta_init: str = option(BETA_INITS[0], "β", choices=BETA_INITS, group="network")
    weight_init: str = option(WEIGHT_INITS[0], "convolutions and fc", choices=WEIGHT_INITS, group="network")
    weights: str | None = option(
        None,
        "a run's folder, or torchvision-keyed .safetensors or .pth to start from",
        metavar="RUN|FILE",
        group="network",
    )
    engine: str = option("auto", "what carries the step out", choices=choices.ENGINES, group="machine")
    exact_conv: bool = option(
        False,
        "no Winograd on the native engine: slower, and exact to float32's last bits",
        bool,
        group="machine",
        advanced=True,
    )
    device: str = option("auto", "cuda where there is one", choices=choices.DEVICES, group="machine")
    threads: int | None = option(None, "CPU threads; torch's own choice", int, group="machine")
    out: str | None = option(
        None, "the run's folder; runs/resnet866-cifar10-bn-s0 and the like", metavar="DIR"
    )
    resume: bool = option(False, "continue the run in --out, bit for bit as if it had never stopped", bool)
    limit_train: int | None = option(None, "train on this many images only", int, metavar="N", group="data")
    limit_test: int | None = option(None, "test on this many images only", int, metavar="N", group="data")
    val: int | None = option(
        None,
        "hold this many training images out and keep the best epoch by them",
        int,
        metavar="N",
        group="data",
    )
    rank_timeout: float = option(
        300.0,
        "seconds that ranks wait for one another in a step, and for image readers",
        float,
        metavar="S",
        group="machine",
        advanced=True,
    )
    explain: bool = option(False, "print what would run, and why, and exit", bool)
    on: str | None = option(
        None,
        "with --explain: on this device by its data sheet (a100, h100, h200, l40s, rtx4090)",
        metavar="NAME",
    )
    no_self_check: bool = option(
        False,
        "take the Triton engine on a GPU without its self-check at the first use",
        bool,
        group="machine",
        advanced=True,
    )
    devices: int | None = option(
        None,
        "with --explain: what so many devices would send each other a step",
        int,
        metavar="N",
        advanced=True,
    )
    step_seconds: float | None = option(
        None,
        "with --devices: of a step on one device; measured here where not given",
        float,
        metavar="S",
        advanced=True,
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
            known = next(f for f in dataclasses.fields(self) if f.name == name).metadata["option"].choices
            choices.one_of(name, getattr(self, name), known)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Config:
        """Return the Config of settings by name, those of one family alone among them. Raises UsageError as a
        Config does, TypeError for a name that is none."""
        defaults = {name: one.default for options in OPTIONS.values() for name, one in options.items()}
        study = {
            name: value for name, value in settings.items() if name in defaults and value != defaults[name]
        }
        rest = {name: value for name, value in settings.items() if name not in defaults}
        return cls(**rest, study=tuple(sorted(study.items())))

    def asdict(self) -> dict[str, Any]:
        """Return every setting by name, as config.json does."""
        given, values = dict(self.study), dict[str, Any]()
        for field in dataclasses.fields(self):
            if field.name == "study":
                for options in OPTIONS.values():
                    values |= {name: given.get(name, one.default) for name, one in options.items()}
            else:
                values[field.name] = getattr(self, field.name)
        return values

    def settings(
        self, default_epochs: int, precision: str = "fp32", usual: Mapping[str, Any] = NOTHING
    ) -> dict[str, Any]:
        """Return every setting by name, those of the recipe resolved, see `Recipe.resolved`."""
        return self.asdict() | dataclasses.asdict(self.resolved(default_epochs, precision, usual))

    def completed_by(self, saved: Mapping[str, Any]) -> Config:
        """Return this config with what it leaves open (None, "auto") filled from a saved run. Raises
        UsageError where the run read a file whose path is not given again."""
        mine = self.asdict()
        for name in PATHS:
            if mine[name] is None and follows(name, saved):
                raise UsageError(
                    f"the run read {shown(saved[name], 120)}, and what a file says is never opened; give "
                    f"--{name.replace('_', '-')} again"
                )
        left_open = {
            name: tuple(saved[name]) if isinstance(saved[name], list) else saved[name]
            for name in known()
            if name in saved and name not in NOT_SAVED and mine[name] in (None, "auto")
        }
        return Config.of(mine | left_open)


def follows(name: str, saved: Mapping[str, Any]) -> bool:
    """Return whether a saved run has read what this setting, one of PATHS, names: other than the default
    folder."""
    if saved.get(name) is None:
        return False
    return name != "data_dir" or (saved[name] != DEFAULT_DIR and saved.get("dataset") not in EMBEDDED)


def known() -> dict[str, Option]:
    """Return every setting's option by name, those of one family alone among them, in config.json's order."""
    by_name: dict[str, Option] = {}
    for field in dataclasses.fields(Config):
        by_family = [OPTIONS[family] for family in OPTIONS] if field.name == "study" else []
        for options in by_family or [{field.name: field.metadata["option"]}]:
            by_name |= options
    return by_name


def differences(asked: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """Return the settings in which a saved run was another than is asked; one that is younger than the run
    had its default."""
    usual = {name: one.default for name, one in known().items()}
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}
    names = [name for name in listed if name not in MAY_DIFFER]
    before = {name: saved.get(name, usual[name]) for name in names}
    return [
        f"{name}: saved {shown(repr(before[name]), 60)}, asked {shown(repr(listed[name]), 60)}"
        for name in names
        if before[name] != listed[name]
    ]
