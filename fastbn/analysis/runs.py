"""A reader of a finished run's folder: its settings, its epochs, its result, its network, its test set."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

from fastbn import files
from fastbn.data.images import Images
from fastbn.errors import UsageError
from fastbn.models.families import resolve
from fastbn.models.network import Network
from fastbn.run.data import test_set
from fastbn.settings import saved
from fastbn.training.affine_statistics import AnyBatchNorm, affine_norms
from fastbn.training.checkpoint import CHECKPOINT, load
from fastbn.training.checkpoint import read as read_checkpoint

FILES = ("config.json", "metrics.jsonl", CHECKPOINT, "summary.json")
DAMAGED = "it is damaged, or of another version of fastbn"
# in which repetitions may differ
ONLY = ("seed", "out", "data_dir", "download", "resume", "explain", "track", "threads")


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """The files that a finished run left, read; of a network that ships without its epochs, `lines` and
    `summary` are empty."""

    path: Path
    config: dict[str, Any]
    lines: list[dict[str, Any]]  # of metrics.jsonl, an epoch each
    summary: dict[str, Any]
    weights: str | None = None  # where the frozen weights' file lies now

    @functools.cached_property
    def model(self) -> Network:
        """Return the network, on the CPU. Raises UsageError for a checkpoint that is damaged, and for a
        network without γ and β."""
        model = load(self.path, weights=self.weights)
        if not affine_norms(model, AnyBatchNorm):
            raise UsageError(
                f"{self.path}: its network has no BatchNorm2d layer with γ and β, nor another "
                "BatchNorm; there is nothing to look into"
            )
        said, layers = model.spec.asdict(), len(affine_norms(model))  # of the kind that metrics.jsonl tells
        if any(self.config.get(name, said[name]) != said[name] for name in ("depth", "family", "width")):
            raise UsageError(f"{self.path}: config.json and {CHECKPOINT} are of two networks; {DAMAGED}")
        if any(len(values) != layers for line in self.lines for values in line.get("norms", {}).values()):
            raise UsageError(
                f"{self.path}: metrics.jsonl's norms are not of the network's {layers} BatchNorms; {DAMAGED}"
            )
        return model

    @property
    def network(self) -> str:
        spec = resolve(
            self.config["depth"], family=self.config.get("family"), norm=self.config.get("norm", "batch")
        )
        return f"{spec.title} on {self.config['dataset']}"

    @property
    def trains(self) -> str:
        return TRAINS.get(self.config["train"], f"training {self.config['train']}")

    @property
    def recipe(self) -> tuple[tuple[str, str], ...]:
        """Return every setting but those in which repetitions may differ."""
        return tuple(
            (name, json.dumps(value)) for name, value in sorted(self.config.items()) if name not in ONLY
        )

    def test_set(self, data_dir: str | None = None, limit: int | None = None) -> Images:
        """Return the run's own test set, where it lies now; of as many images as it was tested on, or
        `limit`. Raises UsageError where it is missing, or is no set of images in memory."""
        family = self.model.spec.family
        test = test_set(self.config, family, self.path, data_dir=data_dir, may_download=False)
        if not isinstance(test, Images):
            raise UsageError(
                f"{self.path}: its data set {test.name} is not of images in memory; add --no-data"
            )
        return test.limit(limit)


TRAINS = {"bn": "BatchNorm only", "all": "everything"}


def read(path: str | os.PathLike[str], weights: str | None = None) -> FinishedRun:
    """Read a run's folder, or a file or folder that holds its network alone. Raises UsageError, in one line,
    for one that is missing, no run's, half written or damaged."""
    folder = Path(path)
    if files.is_file(folder):
        return _network(folder, weights)
    if not files.is_folder(folder):
        raise UsageError(f"{folder}: no such folder; give one that python -m fastbn.train wrote")
    missing = [name for name in FILES if not os.path.lexists(folder / name)]
    if len(missing) == len(FILES):
        raise UsageError(
            f"{folder} holds no run (none of {', '.join(FILES)}); give a folder that python -m fastbn.train "
            "wrote"
        )
    if CHECKPOINT not in missing and len(missing) == len(FILES) - 1:
        return _network(folder, weights)
    if missing:
        raise UsageError(
            f"{folder}: a half-written run, {' and '.join(missing)} not there; finish it with --resume "
            f"--out {folder}"
        )
    path = folder / "config.json"
    config = saved.settings(saved.json_file(path, DAMAGED), path, DAMAGED)
    _complete(config, path)
    summary = saved.summary(folder / "summary.json", ("test_accuracy", "epochs"), DAMAGED)
    needed = ("epoch", "seconds", "test_accuracy", "train_accuracy")
    lines = saved.lines(folder / "metrics.jsonl", needed, remedy="the folder is damaged or half written")
    if not lines:
        raise UsageError(
            f"{folder}: a half-written run, no epoch in metrics.jsonl; finish it with --resume --out {folder}"
        )
    if len(lines) != summary["epochs"]:
        raise UsageError(
            f"{folder}: a half-written run, {len(lines)} epochs in metrics.jsonl and {summary['epochs']} in "
            "summary.json; "
            f"finish it with --resume --out {folder}"
        )
    return FinishedRun(folder, config, lines, summary, weights)


def _network(path: Path, weights: str | None) -> FinishedRun:
    """Return what a checkpoint alone says of its run: the settings in its header."""
    config = read_checkpoint(path)[1].get("config", {})
    _complete(config, path)
    return FinishedRun(path, config, [], {}, weights)


def _complete(config: dict[str, Any], where: Path) -> None:
    """Raise UsageError where a run's settings do not say which network was trained on what."""
    if lacking := [key for key in ("depth", "dataset", "train", "seed") if config.get(key) is None]:
        raise UsageError(f"{where} says nothing of {', '.join(lacking)}; {DAMAGED}")
