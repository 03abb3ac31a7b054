"""What a run says of itself: its first lines, its last, its summary, the name of its folder."""

from __future__ import annotations

import time
from typing import Any

import torch

from fastbn import devices
from fastbn.config import Config
from fastbn.data.datasets import Loaded
from fastbn.models.network import Network
from fastbn.run import rank_messages
from fastbn.run.build import spec_of
from fastbn.trainable import count
from fastbn.training.distributed.ranks import ALONE, Ranks


def opening(
    config: Config,
    loaded: Loaded,
    model: Network,
    why: str,
    note: str,
    ranks: Ranks = ALONE,
    replicas: int = 1,
) -> list[str]:
    """What a run says first."""
    some, total = count(model)
    versions = ", ".join(f"{name} {version}" for name, version in devices.versions().items())
    schedule = f", {config.schedule}"
    if config.schedule == "multistep":
        schedule = f" ÷10 at {', '.join(map(str, config.milestones))}" if config.milestones else ""
    warmup = f", {config.warmup_epochs} epochs of warm-up" if config.warmup_epochs else ""
    graph = (
        "; the step is one CUDA graph a batch size"
        if (config.engine, config.device) == ("triton", "cuda")
        else ""
    )
    return [
        *([f"fastbn: {note}"] if note else []),
        f"device    {devices.describe(torch.device(config.device))} ({versions})",
        f"engine    {config.engine}, {config.precision} ({why}){graph}",
        *([rank_messages.described(config, some, ranks)] if ranks.count > 1 else []),
        *(
            [f"replicas  {replicas} networks in this process, {_beside(config.device)}"]
            if replicas > 1
            else []
        ),
        f"data      {loaded.train.name}: {len(loaded.train):,} to train on, {len(loaded.test):,} to test "
        f"({loaded.why})",
        f"network   {model.spec.title}, {some:,} of {total:,} parameters train ({config.train})",
        f"recipe    {config.epochs} epochs, batch {config.batch_size}, {config.optimizer} lr "
        f"{config.lr:g}{schedule}{warmup}, "
        f"weight decay {config.weight_decay}, seed {config.seed}",
    ]


def _beside(device: str) -> str:
    return (
        "side by side on the GPU"
        if device == "cuda"
        else "in turns: no faster than one after the other, but for reading the data once"
    )


def name(config: Config, loaded: Loaded) -> str:
    """Of the folder that a run makes for itself."""
    spec = spec_of(config)
    network = (
        f"resnet{spec.depth}"
        if spec.family in ("cifar", "imagenet")
        else f"{spec.family}{config.depth or ''}"
    )
    return f"{network}-{loaded.name}-{config.train}-s{config.seed}"


def summary(
    config: Config, loaded: Loaded, model: Network, why: str, history: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    """What summary.json holds."""
    last, (some, total) = history[-1], count(model)
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
        "engine": config.engine,
        "engine_why": why,
        "device": devices.describe(torch.device(config.device)),
        "instructions": devices.instructions(torch.device(config.device)),
        "versions": devices.versions(),
        "images_per_second": sorted(line["images_per_second"] for line in history)[len(history) // 2],
        "training_seconds": sum(line["seconds"] for line in history),
        "seconds_of_this_process": seconds,
        "peak_memory_bytes": max(line["peak_memory_bytes"] for line in history),
        "planned_memory_bytes": last.get("planned_memory_bytes"),
        "date": time.strftime("%Y-%m-%d"),
    }


def last_line(config: Config, loaded: Loaded, model: Network, summary: dict[str, Any]) -> str:
    top5 = f" (top-5 {summary['test_top5_accuracy']:.4f})" if "test_top5_accuracy" in summary else ""
    return (
        f"{model.spec.title} on {loaded.train.name}: test accuracy {summary['test_accuracy']:.4f}{top5} "
        f"after {summary['epochs']} epochs, "
        f"{summary['trained_parameters']:,} of {summary['parameters']:,} parameters trained; {config.out}"
    )
