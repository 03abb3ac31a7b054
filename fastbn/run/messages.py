"""The messages of a run about itself: its first lines, its last, its summary, the name of its folder."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import torch

from fastbn.cli.parser import program
from fastbn.data.datasets import Loaded
from fastbn.machine import devices
from fastbn.models.families import Spec
from fastbn.models.network import Network
from fastbn.run import rank_messages
from fastbn.run.settings import ResolvedRun
from fastbn.settings.config import PATHS, Config, known
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


def busy(device: str, threads: int) -> list[str]:
    """Return what a run on several threads says where the machine has more to do than processors to do it."""
    processors, load = devices.processors(), devices.load()
    if device != "cpu" or threads == 1 or load <= processors:
        return []
    said = f"{load:.1f} processes want {processors} processors, and threads wait for one another"
    return [f"busy      {said}: --threads 1 may be several times faster"]


def next_steps(run: ResolvedRun) -> list[str]:
    """Return what can be done with a run that is over."""
    return [
        f"next      {program('evaluate')} {run.out}",
        f"          {program('analyze')} {run.out} -o report.html",
    ]


def _beside(device: str) -> str:
    return (
        "side by side on the GPU"
        if device == "cuda"
        else "in turns: no faster than one after the other, but for reading the data once"
    )


LONGEST_NAME = 120  # characters of a folder's name; what differs beyond is told apart by a digest
# what tells one recipe from another beside network, data set, what trains and seed
RECIPE = (
    "batch_size", "bn_batch", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "schedule",
    "milestones", "warmup_epochs", "bn_stats", "sync_bn", "width", "norm", "norm_eps", "norm_momentum",
    "conv_bias", "stride_on", "augment", "pixels", "gamma_init", "beta_init", "weight_init",
)  # fmt: skip


def name(config: Config, spec: Spec, dataset: str) -> str:
    """Return the name of the folder that a run makes for itself: its network, data set, what trains and seed,
    and the recipe's settings that were given other values than their defaults."""
    network = (
        f"resnet{spec.depth}"
        if spec.family in ("cifar", "imagenet")
        else f"{spec.family}{config.depth or ''}"
    )
    options, asked = known(), config.asdict()
    told = [*RECIPE, *(one for one, _ in config.study if one not in PATHS)]
    given = [(one, asked[one]) for one in told if asked[one] != options[one].default]
    parts = [f"{network}-{dataset}-{config.train}-s{config.seed}", *(_part(*one) for one in given)]
    whole = "-".join(parts)
    if len(whole) <= LONGEST_NAME:
        return whole
    return f"{parts[0][: LONGEST_NAME - 13]}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def _part(name: str, value: Any) -> str:
    """Return a setting as it stands in a folder's name: lr0.3, batch64, nesterov, schedule-cosine."""
    flag = {"batch_size": "batch", "weight_decay": "wd", "warmup_epochs": "warmup"}.get(
        name, name.replace("_", "-")
    )
    if value is True:
        return flag
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return f"{flag}-{value}" if isinstance(value, str) else f"{flag}{value:g}"


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
