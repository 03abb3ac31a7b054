"""What a run says of itself: its first lines, its last, its summary, the name of its folder."""

from __future__ import annotations

import time
from typing import Any

import torch

from fastbn import devices
from fastbn.config import Config
from fastbn.data.datasets import Loaded
from fastbn.models.families import Spec
from fastbn.models.network import Network
from fastbn.run import rank_messages
from fastbn.run.settings import ResolvedRun
from fastbn.trainable import count
from fastbn.training.distributed.ranks import ALONE, Ranks


def opening(
    run: ResolvedRun, loaded: Loaded, model: Network, note: str, ranks: Ranks = ALONE, replicas: int = 1
) -> list[str]:
    """Return what a run says first. replicas: how many share its process."""
    some, total = count(model)
    recipe, device = run.recipe, torch.device(run.device)
    versions = ", ".join(f"{name} {version}" for name, version in devices.versions().items())
    schedule = f", {recipe.schedule}"
    if recipe.schedule == "multistep":
        schedule = f" ÷10 at {', '.join(map(str, recipe.milestones))}" if recipe.milestones else ""
    warmup = f", {recipe.warmup_epochs} epochs of warm-up" if recipe.warmup_epochs else ""
    captured = (run.engine, run.device) == ("triton", "cuda")
    graph = "; the step is one CUDA graph a batch size" if captured else ""
    beside = f"replicas  {replicas} networks in this process, {_beside(run.device)}"
    return [
        *([f"fastbn: {note}"] if note else []),
        f"device    {devices.describe(device)} ({versions})",
        f"engine    {run.engine}, {recipe.precision} ({run.why}){graph}",
        *([rank_messages.described(recipe, some, ranks)] if ranks.count > 1 else []),
        *([beside] if replicas > 1 else []),
        f"data      {loaded.train.name}: {len(loaded.train):,} to train on, {len(loaded.test):,} to test "
        f"({loaded.why})",
        f"network   {model.spec.title}, {some:,} of {total:,} parameters train ({run.asked.train})",
        f"recipe    {recipe.epochs} epochs, batch {recipe.batch_size}, {recipe.optimizer} lr "
        f"{recipe.lr:g}{schedule}{warmup}, weight decay {recipe.weight_decay}, seed {recipe.seed}",
    ]


def _beside(device: str) -> str:
    return (
        "side by side on the GPU"
        if device == "cuda"
        else "in turns: no faster than one after the other, but for reading the data once"
    )


def name(config: Config, spec: Spec, dataset: str) -> str:
    """Return the name of the folder that a run makes for itself."""
    network = (
        f"resnet{spec.depth}"
        if spec.family in ("cifar", "imagenet")
        else f"{spec.family}{config.depth or ''}"
    )
    return f"{network}-{dataset}-{config.train}-s{config.seed}"


def summary(
    run: ResolvedRun, loaded: Loaded, model: Network, history: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    """Return what summary.json holds."""
    last, (some, total), device = history[-1], count(model), torch.device(run.device)
    top5 = {key: last[key] for key in ("test_top5_accuracy",) if key in last}
    return {
        "test_accuracy": last["test_accuracy"],
        **top5,
        "test_loss": last["test_loss"],
        "train_accuracy": last["train_accuracy"],
        "epochs": len(history),
        "parameters": total,
        "trained_parameters": some,
        "dataset": loaded.name,
        "dataset_why": loaded.why,
        "engine": run.engine,
        "engine_why": run.why,
        "device": devices.describe(device),
        "instructions": devices.instructions(device),
        "versions": devices.versions(),
        "images_per_second": sorted(line["images_per_second"] for line in history)[len(history) // 2],
        "training_seconds": sum(line["seconds"] for line in history),
        "seconds_of_this_process": seconds,
        "peak_memory_bytes": max(line["peak_memory_bytes"] for line in history),
        "planned_memory_bytes": last.get("planned_memory_bytes"),
        "date": time.strftime("%Y-%m-%d"),
    }


def last_line(run: ResolvedRun, loaded: Loaded, model: Network, summary: dict[str, Any]) -> str:
    """Return the line that sums a run up."""
    top5 = f" (top-5 {summary['test_top5_accuracy']:.4f})" if "test_top5_accuracy" in summary else ""
    return (
        f"{model.spec.title} on {loaded.train.name}: test accuracy {summary['test_accuracy']:.4f}{top5} "
        f"after {summary['epochs']} epochs, "
        f"{summary['trained_parameters']:,} of {summary['parameters']:,} parameters trained; {run.out}"
    )
