"""A run of the command line: settings -> data set, network, folder -> fit -> summary."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from fastbn.config import Config
from fastbn.data.choose import Loaded, load
from fastbn.data.images import Images
from fastbn.data.names import DEFAULT_DIR, IMAGE_SIZE
from fastbn.engine import explain
from fastbn.errors import UsageError
from fastbn.models.network import Network
from fastbn.trainable import count, trainable
from fastbn.training import machine, precision
from fastbn.training.building import engine_of, network_of, spec_of
from fastbn.training.checkpoint import CHECKPOINT, save
from fastbn.training.folder import RunFolder, json_ready
from fastbn.training.loop import fit
from fastbn.training.measure import measure
from fastbn.training.progress import Progress
from fastbn.training.saving import Saver


def train_run(config: Config) -> str:
    """Trains, and returns the line that sums it up. Raises UsageError, MachineError, Diverged, Stopped."""
    begun = time.perf_counter()
    spec_of(config)  # a wrong depth is told before any data is read
    device = machine.choose_device(config.device)
    precision.check(config.precision, device)
    engine_of(config, device)
    loaded = None
    if config.out is None:
        loaded = _data(config)  # the folder's name holds the data set's
        config = dataclasses.replace(config, out=f"runs/{_name(config, loaded)}", dataset=loaded.name)
    assert config.out is not None
    folder = RunFolder(config.out)
    try:
        config, note = _continued(config, folder)
        loaded = loaded if loaded is not None and loaded.name == config.dataset else _data(config)
        config, why = _resolved(config, loaded)
        model = network_of(config, loaded.train)
        if folder.has_checkpoint:
            differing = config.differences(folder.checkpoint()[1].get("config", {}))
            if differing:
                raise UsageError(f"{folder.path} holds a run with other settings ({'; '.join(differing)}); give the same, or another --out")
        train, val = loaded.train, None
        if config.val is not None:
            train, val = train.split(config.val, config.seed)
        folder.write_json("config.json", json_ready(config))
        speak = Progress(config.epochs or 0, True)
        for line in _opening(config, loaded, model, why, note):
            speak.say(line)
        if trainable(model):
            saver = Saver(folder, json_ready(config))
            history = fit(model, train, loaded.test, val, saver=saver, recipe=config.recipe())
        else:
            history = measure(model, train, loaded.test, config.recipe())
            folder.keep_metrics(0)
            folder.add_metrics(history[0])
            save(model, folder.path / CHECKPOINT, config=json_ready(config))
        summary = _summary(config, loaded, model, why, history, time.perf_counter() - begun)
        folder.write_json("summary.json", summary)
        return (
            f"{model.spec.title} on {loaded.train.name}: test accuracy {summary['test_accuracy']:.4f} after {summary['epochs']} epochs, "
            f"{summary['trained_parameters']:,} of {summary['parameters']:,} parameters trained; {folder.path}"
        )
    finally:
        folder.close()


def explain_run(config: Config) -> str:
    """The plan: what would train, on what, by which engine, and which parts of the network run fused."""
    asked = config
    loaded = _data(config, may_download=False)
    config, why = _resolved(config, loaded)
    model = network_of(config, loaded.train)
    note = "" if asked.dataset != "auto" else "the plan for the data that is here: --explain downloads nothing"
    return "\n".join([*_opening(config, loaded, model, why, note), *str(explain(model)).splitlines()[1:]])


def _data(config: Config, may_download: bool = True) -> Loaded:
    size = IMAGE_SIZE.get(spec_of(config).family, 32)
    default_dir = DEFAULT_DIR if may_download else None  # the one folder that is downloaded into without being asked
    return _limited(load(config.dataset, config.data_dir, config.download and may_download, size, default_dir), config)


def _limited(loaded: Loaded, config: Config) -> Loaded:
    train, test = loaded.train.limit(config.limit_train), loaded.test.limit(config.limit_test)
    if config.augment is not None or config.pixels != "standard":
        if not isinstance(train, Images):
            raise UsageError(f"--augment and --pixels are of images in memory, and {train.name} is not that; leave them out")
        train, test = (images.prepared(config.augment, config.pixels) for images in (train, test))
    return dataclasses.replace(loaded, train=train, test=test)


def _continued(config: Config, folder: RunFolder) -> tuple[Config, str]:
    """The config completed by that of the run in the folder, and what to say of it."""
    if folder.holds_run and not config.resume:
        raise UsageError(f"{folder.path} holds a run; continue it with --resume, or choose another --out")
    saved = folder.config()
    if not config.resume:
        return config, ""
    if not folder.has_checkpoint:
        return config, f"nothing saved in {folder.path}: starting afresh"
    if saved is None:
        raise UsageError(f"{folder.path} holds a checkpoint but no config.json; the folder is damaged, choose another --out")
    return config.completed_by(saved), f"resuming {folder.path}"


def _resolved(config: Config, loaded: Loaded) -> tuple[Config, str]:
    """Nothing left open; and why this engine."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = machine.choose_device(config.device)
    spec = spec_of(config)
    engine, why = engine_of(config, device)
    config = config.resolved(loaded.train.default_epochs, precision.automatic(engine, device))
    config = dataclasses.replace(
        config,
        depth=spec.depth,
        family=spec.family,
        conv_bias=spec.conv_bias,
        width=spec.width,
        dataset=loaded.name,
        engine=engine,
        device=device.type,
        threads=torch.get_num_threads(),
    )
    return config, why


def _opening(config: Config, loaded: Loaded, model: Network, why: str, note: str) -> list[str]:
    """What a run says first."""
    some, total = count(model)
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions().items())
    schedule = f", {config.schedule}"
    if config.schedule == "multistep":
        schedule = f" ÷10 at {', '.join(map(str, config.milestones))}" if config.milestones else ""
    return [
        *([f"fastbn: {note}"] if note else []),
        f"device    {machine.describe(torch.device(config.device))} ({versions})",
        f"engine    {config.engine}, {config.precision} ({why})",
        f"data      {loaded.train.name}: {len(loaded.train):,} to train on, {len(loaded.test):,} to test ({loaded.why})",
        f"network   {model.spec.title}, {some:,} of {total:,} parameters train ({config.train})",
        f"recipe    {config.epochs} epochs, batch {config.batch_size}, {config.optimizer} lr {config.lr}{schedule}, "
        f"weight decay {config.weight_decay}, seed {config.seed}",
    ]




def _name(config: Config, loaded: Loaded) -> str:
    spec = spec_of(config)
    network = f"resnet{spec.depth}" if spec.family in ("cifar", "imagenet") else f"{spec.family}{config.depth or ''}"
    return f"{network}-{loaded.name}-{config.train}-s{config.seed}"


def _summary(
    config: Config, loaded: Loaded, model: Network, why: str, history: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    last, (some, total) = history[-1], count(model)
    return {
        "test_accuracy": last["test_accuracy"],
        "test_loss": last["test_loss"],
        "train_accuracy": last["train_accuracy"],
        "epochs": len(history),
        "parameters": total,
        "trained_parameters": some,
        "dataset": loaded.name,
        "dataset_why": loaded.why,
        "engine": config.engine,
        "engine_why": why,
        "device": machine.describe(torch.device(config.device)),
        "versions": machine.versions(),
        "images_per_second": sorted(line["images_per_second"] for line in history)[len(history) // 2],
        "training_seconds": sum(line["seconds"] for line in history),
        "seconds_of_this_process": seconds,
        "peak_memory_bytes": max(line["peak_memory_bytes"] for line in history),
        "date": time.strftime("%Y-%m-%d"),
    }
