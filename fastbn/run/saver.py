"""The files that a run saves while it trains, and its continuation from them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastbn import files
from fastbn.errors import UsageError
from fastbn.models.network import Network
from fastbn.run.folder import BEST, RunFolder
from fastbn.training.checkpoint import (
    CHECKPOINT,
    WeightSource,
    header_of,
    numbers,
    restore,
    some_entries,
    source_of,
    tensors_of,
)
from fastbn.training.saving import Position
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals


class FolderSaver:
    """Writes a run's metrics and checkpoints into its folder; starts from the checkpoint that lies there,
    if any."""

    def __init__(self, folder: RunFolder, settings: dict[str, Any]):
        """settings: as config.json says them."""
        self.folder, self.settings = folder, settings
        self.history: list[dict[str, Any]] = []

    def start(self, step: TrainingStep) -> Position:
        """Return the position to train from: the checkpoint's, the model and optimizer restored, or the
        beginning.

        Raises UsageError for a checkpoint that is damaged or of another network.
        """
        model = step.model
        assert isinstance(model, Network)
        self.model, device = model, step.feed.device
        if not self.folder.has_checkpoint:
            self.source = source_of(model)
            self.folder.begin(self.settings, self.history)
            return Position(0, 0, Totals.zero(device))
        path = self.folder.path / CHECKPOINT
        tensors, header = self.folder.checkpoint()
        if header["model"] != model.spec.said():
            other = files.shown(header["model"])
            raise UsageError(f"{path} is of another network: {other}, asked {files.shown(model.spec.said())}")
        if "position" not in header:
            raise UsageError(f"{path} holds a model but no run to resume; start one in another --out")
        saved = header["position"]
        self.source = WeightSource(**header["source"])
        if any(
            header.get(name) != value
            for name, value in header_of(model, self.source).items()
            if name in ("trains", "entries")
        ):
            raise UsageError(
                f"{path}: in it other parameters train than in this run; the folder is damaged, choose "
                "another --out"
            )
        self._check(step, tensors, saved, path)
        history = self.folder.lines(saved["epoch"])
        if model.weights_file is not None:  # which may have moved; its SHA-256 decides
            self.source = dataclasses.replace(self.source, file=os.path.abspath(model.weights_file))
        restore(model, tensors, self.source)
        for name, value in step.optimizer.state.items():
            value.copy_(tensors[f"optimizer.{name}"])
        self.history = history
        self.folder.begin(self.settings, history)
        totals = Totals.zero(device)
        totals.loss += saved["loss"]
        totals.correct += saved["correct"]
        totals.images = saved["images"]
        return Position(saved["epoch"], saved["step"], totals)

    def _check(
        self, step: TrainingStep, tensors: dict[str, Tensor], saved: dict[str, Any], path: Path
    ) -> None:
        """Raise UsageError where the position is none of this run's, or the optimizer's state not of this
        optimizer."""
        images = min(saved["step"] * step.recipe.batch_size, len(step.feed))
        if (
            saved["step"] > -(-len(step.feed) // step.recipe.batch_size)
            or saved["images"] != images
            or saved["correct"] > images
        ):
            raise UsageError(
                f"{path}: its position is not one that this run comes to; the folder is damaged, choose "
                "another --out"
            )
        masks, stored = some_entries(step.model), tensors.keys() & {"entries"}
        if masks.keys() != stored or any(
            not torch.equal(tensors[name], value) for name, value in masks.items()
        ):
            raise UsageError(
                f"{path}: in it other weights train than in this run; the folder is damaged, choose another "
                "--out"
            )
        for name, value in step.optimizer.state.items():
            kept = tensors.get(f"optimizer.{name}")
            if kept is None or kept.shape != value.shape:
                shape = "nothing" if kept is None else tuple(kept.shape)
                needed = f"optimizer.{name} should have the shape {tuple(value.shape)}"
                raise UsageError(f"{path}: {needed}, found {shape}; use another copy")
            numbers(f"optimizer.{name}", kept)

    def save(self, step: TrainingStep, position: Position) -> None:
        """Save the checkpoint of this position."""
        tensors, header = self._model(step)
        totals = position.totals
        header |= {
            "config": self.settings,
            "position": {
                "epoch": position.epoch,
                "step": position.step,
                "loss": totals.loss.item(),
                "correct": int(totals.correct),
                "images": totals.images,
            },
        }
        tensors |= {f"optimizer.{name}": value for name, value in step.optimizer.state.items()}
        self.folder.save(CHECKPOINT, tensors, header)

    def epoch(self, step: TrainingStep, position: Position, line: dict[str, Any]) -> None:
        """Save an epoch that is over: its metrics first, so that a kill between the two repeats the epoch
        and loses nothing."""
        if "val_accuracy" in line and line["val_accuracy"] > max(
            (old["val_accuracy"] for old in self.history), default=-1.0
        ):
            tensors, header = self._model(step)
            self.folder.save(
                BEST,
                tensors,
                header
                | {"config": self.settings, "epoch": line["epoch"], "val_accuracy": line["val_accuracy"]},
            )
        self.history.append(line)
        self.folder.add_metrics(line)
        self.save(step, position)

    def _model(self, step: TrainingStep) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with torch.no_grad():
            return tensors_of(self.model, self.source), header_of(self.model, self.source)
