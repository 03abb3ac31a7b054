"""A run of the command line: settings -> data set, network, folder -> fit -> summary."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any

import torch

from fastbn.choices import train_names
from fastbn.config import Config
from fastbn.data.choose import Loaded, load
from fastbn.data.feed import feed
from fastbn.data.names import DEFAULT_DIR, IMAGE_SIZE
from fastbn.engine import explain, fuse
from fastbn.engine.choose import choose
from fastbn.errors import UsageError
from fastbn.models.families import resolve
from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.trainable import TRAIN_MODES, count, freeze, trainable
from fastbn.training import communication, machine, precision
from fastbn.training.distributed import sharing
from fastbn.training.distributed.ranks import ALONE, Ranks, started
from fastbn.training.folder import RunFolder, json_ready
from fastbn.training.loop import fit
from fastbn.training.progress import Progress
from fastbn.training.saving import Saver
from fastbn.training.step import Step

DTYPES = {"bf16": torch.bfloat16, "mixed": torch.float16}  # of stored activations, where it is not float32


def train_run(config: Config) -> str:
    """Trains, among torchrun's ranks where it started this process, and returns the line that sums it up.
    Raises UsageError, MachineError, Diverged, Stopped."""
    with started(config.rank_timeout) as ranks, contextlib.ExitStack() as stack:
        return _train(config, ranks, stack)


def _train(config: Config, ranks: Ranks, stack: contextlib.ExitStack) -> str:
    """The first rank alone opens the folder, and decides on the data; `stack` closes the folder."""
    begun = time.perf_counter()
    opened = ranks.agree(lambda: _opened(config, ranks, stack) if ranks.first else None)
    config, note = ranks.told((opened.config, opened.note) if opened else (config, ""))
    folder = opened.folder if opened else None

    def made() -> tuple[Config, Loaded, str, FastBNOnlyResNet]:
        loaded = opened.loaded if opened else _data(config, may_download=False)
        resolved, why = _resolved(config, loaded)
        model = _model(resolved, loaded)
        if not trainable(model):
            raise UsageError(f"--train {config.train} leaves nothing to train; choose from {', '.join(TRAIN_MODES)}")
        if folder is not None and folder.has_checkpoint:
            differing = resolved.differences(folder.checkpoint()[1].get("config", {}))
            if differing:
                raise UsageError(f"{folder.path} holds a run with other settings ({'; '.join(differing)}); give the same, or another --out")
        return resolved, loaded, why, model

    config, loaded, why, model = ranks.agree(made)
    train, val = loaded.train, None
    if config.val is not None:
        train, val = train.split(config.val, config.seed)
    saver = None
    if folder is not None:
        settings = json_ready(config) | {"ranks": ranks.count}
        folder.write_json("config.json", settings)
        speak = Progress(config.epochs or 0, True)
        for line in _opening(config, loaded, model, why, note, ranks):
            speak.say(line)
        saver = Saver(folder, settings)
    history = fit(model, train, loaded.test, val, saver=saver, ranks=ranks, recipe=config.recipe())
    summary = _summary(config, loaded, model, why, history, time.perf_counter() - begun) | {"ranks": ranks.count}
    if folder is not None:
        folder.write_json("summary.json", summary)
    return (
        f"{_network(config)} on {loaded.train.name}: test accuracy {summary['test_accuracy']:.4f} after {summary['epochs']} epochs, "
        f"{summary['trained_parameters']:,} of {summary['parameters']:,} parameters trained; {config.out}"
    )


@dataclasses.dataclass(frozen=True)
class _Opened:
    """What the first rank decides for all."""

    config: Config
    folder: RunFolder
    loaded: Loaded
    note: str


def _opened(config: Config, ranks: Ranks, stack: contextlib.ExitStack) -> _Opened:
    resolve(config.depth, width=config.width, family=config.family)  # a wrong depth is told before any data is read
    device = machine.choose_device(config.device)
    precision.check(config.precision, device)
    _engine(config, device)
    loaded = None
    if config.out is None:
        loaded = _data(config)  # the folder's name holds the data set's
        config = dataclasses.replace(config, out=f"runs/{_name(config, loaded)}", dataset=loaded.name)
    assert config.out is not None
    folder = RunFolder(config.out)
    stack.callback(folder.close)
    config, note = _continued(config, folder, ranks)
    loaded = loaded if loaded is not None and loaded.name == config.dataset else _data(config)
    return _Opened(dataclasses.replace(config, dataset=loaded.name), folder, loaded, note)


def explain_run(config: Config) -> str:
    """The plan: what would train, on what, by which engine, and which parts of the network run fused."""
    asked = config
    loaded = _data(config, may_download=False)
    config, why = _resolved(config, loaded)
    model = _model(config, loaded)
    note = "" if asked.dataset != "auto" else "the plan for the data that is here: --explain downloads nothing"
    lines = [*_opening(config, loaded, model, why, note), *str(explain(model)).splitlines()[1:]]
    if config.devices is not None:
        step = Step(model, feed(loaded.train, torch.device(config.device)), config.recipe())
        lines += communication.lines(config, model, step)
    return "\n".join(lines)


def _data(config: Config, may_download: bool = True) -> Loaded:
    size = IMAGE_SIZE[resolve(config.depth, family=config.family).family]
    default_dir = DEFAULT_DIR if may_download else None  # the one folder that is downloaded into without being asked
    return _limited(load(config.dataset, config.data_dir, config.download and may_download, size, default_dir), config)


def _limited(loaded: Loaded, config: Config) -> Loaded:
    return dataclasses.replace(loaded, train=loaded.train.limit(config.limit_train), test=loaded.test.limit(config.limit_test))


def _continued(config: Config, folder: RunFolder, ranks: Ranks) -> tuple[Config, str]:
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
    return config.completed_by(saved), f"resuming {folder.path}{sharing.other_ranks(config, saved.get('ranks', 1), ranks)}"


def _resolved(config: Config, loaded: Loaded) -> tuple[Config, str]:
    """Nothing left open; and why this engine."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = machine.choose_device(config.device)
    spec = resolve(config.depth, width=config.width, family=config.family)
    engine, why = _engine(config, device)
    if config.sync_bn and engine in ("triton", "stock"):
        raise UsageError(f"--sync-bn is the reference and the native engine's, this run's is {engine} ({why}); leave it out")
    config = config.resolved(loaded.train.default_epochs, precision.automatic(engine, device))
    config = dataclasses.replace(
        config,
        family=spec.family,
        width=spec.width,
        dataset=loaded.name,
        engine=engine,
        device=device.type,
        threads=torch.get_num_threads(),
    )
    return config, why


def _engine(config: Config, device: torch.device) -> tuple[str, str]:
    """The engine's name, and why it is that one."""
    if "all" in train_names(config.train):
        if config.engine not in ("auto", "stock"):
            raise UsageError(f"--engine {config.engine} runs frozen convolutions, --train {config.train} leaves none; use --engine stock")
        return "stock", "every convolution trains"
    engine, why = choose(config.engine, device, DTYPES.get(config.precision, torch.float32))
    name = engine.name if engine else "stock"
    if config.precision == "mixed" and name != "triton":
        raise UsageError(f"--precision mixed is the Triton engine's, and --engine {config.engine} means {name} here; use fp32 or bf16")
    return name, why


def _model(config: Config, loaded: Loaded) -> FastBNOnlyResNet:
    model = FastBNOnlyResNet(
        config.depth,
        len(loaded.train.classes),
        config.width,
        config.family,
        config.seed,
        "stock",
        config.weights,
        gamma_init=config.gamma_init,
        beta_init=config.beta_init,
        weight_init=config.weight_init,
    )
    freeze(model, config.train)
    model.to(config.device)
    fuse(model, config.engine, config.exact_conv)
    return model


def _opening(config: Config, loaded: Loaded, model: FastBNOnlyResNet, why: str, note: str, ranks: Ranks = ALONE) -> list[str]:
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
        *([sharing.described(config, some, ranks)] if ranks.count > 1 else []),
        f"data      {loaded.train.name}: {len(loaded.train):,} to train on, {len(loaded.test):,} to test ({loaded.why})",
        f"network   {_network(config)}, {some:,} of {total:,} parameters train ({config.train})",
        f"recipe    {config.epochs} epochs, batch {config.batch_size}, {config.optimizer} lr {config.lr}{schedule}, "
        f"weight decay {config.weight_decay}, seed {config.seed}",
    ]


def _network(config: Config) -> str:
    family = "" if config.family == "cifar" else f" ({config.family})"
    return f"ResNet-{config.depth}{family}"


def _name(config: Config, loaded: Loaded) -> str:
    return f"resnet{config.depth}-{loaded.name}-{config.train}-s{config.seed}"


def _summary(
    config: Config, loaded: Loaded, model: FastBNOnlyResNet, why: str, history: list[dict[str, Any]], seconds: float
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
