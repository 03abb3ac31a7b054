"""What a run saves while it trains, and how it takes the thread up again."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from torch import Tensor

from fastbn.errors import UsageError
from fastbn.models.network import Network
from fastbn.run.folder import BEST, RunFolder
from fastbn.training.checkpoint import CHECKPOINT, WeightSource, header_of, restore, source_of, tensors_of
from fastbn.training.saving import Position
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals


class FolderSaver:
    """Writes a run's metrics and checkpoints into its folder; starts from the checkpoint that lies there,
    if any."""

    def __init__(self, folder: RunFolder, config: dict[str, Any]):
        self.folder, self.config = folder, config
        self.history: list[dict[str, Any]] = []

    def start(self, step: TrainingStep) -> Position:
        """The position to train from: the checkpoint's, the model and optimizer restored, or the beginning.

        Raises UsageError for a checkpoint that is damaged or of another network.
        """
        model = step.model
        assert isinstance(model, Network)
        self.model, device = model, step.feed.device
        if not self.folder.has_checkpoint:
            self.source = source_of(model)
            self.history = self.folder.keep_metrics(0)
            return Position(0, 0, Totals.zero(device))
        tensors, header = self.folder.checkpoint()
        if header.get("model") != model.spec.said():
            raise UsageError(
                f"{self.folder.path / CHECKPOINT} is of another network: {header.get('model')}, asked "
                f"{model.spec.said()}"
            )
        if "position" not in header:
            raise UsageError(
                f"{self.folder.path / CHECKPOINT} holds a model but no run to resume; start one in another "
                "--out"
            )
        self.source = WeightSource(**header["source"])
        if model.weights_file is not None:  # which may have moved; its SHA-256 decides
            self.source = dataclasses.replace(self.source, file=os.path.abspath(model.weights_file))
        restore(model, tensors, self.source)
        for name, value in step.optimizer.state.items():
            value.copy_(tensors[f"optimizer.{name}"])
        saved = header["position"]
        self.history = self.folder.keep_metrics(saved["epoch"])
        totals = Totals.zero(device)
        totals.loss += saved["loss"]
        totals.correct += saved["correct"]
        totals.images = saved["images"]
        return Position(saved["epoch"], saved["step"], totals)

    def save(self, step: TrainingStep, position: Position) -> None:
        """The checkpoint of this position."""
        tensors, header = self._model(step)
        totals = position.totals
        header |= {
            "config": self.config,
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
        """An epoch is over: its metrics first, so that a kill between the two repeats the epoch and loses
        nothing."""
        if "val_accuracy" in line and line["val_accuracy"] > max(
            (old["val_accuracy"] for old in self.history), default=-1.0
        ):
            tensors, header = self._model(step)
            self.folder.save(
                BEST,
                tensors,
                header
                | {"config": self.config, "epoch": line["epoch"], "val_accuracy": line["val_accuracy"]},
            )
        self.history.append(line)
        self.folder.add_metrics(line)
        self.save(step, position)

    def _model(self, step: TrainingStep) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with torch.no_grad():
            return tensors_of(self.model, self.source), header_of(self.model, self.source)
