"""A run of the command line: settings -> data set, network, folder -> fit -> summary."""

from __future__ import annotations

import contextlib
import dataclasses
import time

import torch

from fastbn.config import Config
from fastbn.data.choose import Loaded, load
from fastbn.data.feed import feed
from fastbn.data.images import Images
from fastbn.data.names import DEFAULT_DIR, IMAGE_SIZE
from fastbn.engine import explain
from fastbn.errors import UsageError
from fastbn.models.network import Network
from fastbn.trainable import trainable
from fastbn.training import communication, machine, precision, telling
from fastbn.training.building import engine_of, network_of, spec_of
from fastbn.training.checkpoint import CHECKPOINT, save
from fastbn.training.distributed import sharing
from fastbn.training.distributed.ranks import Ranks, started
from fastbn.training.folder import RunFolder, json_ready
from fastbn.training.loop import fit
from fastbn.training.measure import measure
from fastbn.training.progress import Progress
from fastbn.training.saving import Saver
from fastbn.training.step import Step
from fastbn.training.tracking import Tracker


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
    tracker = opened.tracker if opened else None

    def made() -> tuple[Config, Loaded, str, Network]:
        loaded = opened.loaded if opened else _data(config, may_download=False)
        resolved, why = _resolved(config, loaded)
        model = network_of(resolved, loaded.train)
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
        for line in telling.opening(config, loaded, model, why, note, ranks):
            speak.say(line)
        saver = Saver(folder, settings)
        if tracker is not None:
            tracker.start(folder.path.name, settings)
    if trainable(model):
        log = tracker.log if tracker is not None else None
        history = fit(model, train, loaded.test, val, saver=saver, ranks=ranks, recipe=config.recipe(), log=log)
    else:
        history = measure(model, train, loaded.test, config.recipe())
        if tracker is not None:
            tracker.log(history[0])
        if folder is not None:
            folder.keep_metrics(0)
            folder.add_metrics(history[0])
            save(model, folder.path / CHECKPOINT, config=json_ready(config))
    summary = telling.summary(config, loaded, model, why, history, time.perf_counter() - begun) | {"ranks": ranks.count}
    if folder is not None:
        folder.write_json("summary.json", summary)
    return telling.last_line(config, loaded, model, summary)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """What the first rank decides for all."""

    config: Config
    folder: RunFolder
    loaded: Loaded
    note: str
    tracker: Tracker | None


def _opened(config: Config, ranks: Ranks, stack: contextlib.ExitStack) -> _Opened:
    spec_of(config)  # a wrong depth is told before any data is read
    device = machine.choose_device(config.device)
    precision.check(config.precision, device)
    engine_of(config, device)
    tracker = Tracker(config.track) if config.track else None
    if tracker is not None:
        stack.callback(tracker.finish)
    loaded = None
    if config.out is None:
        loaded = _data(config)  # the folder's name holds the data set's
        config = dataclasses.replace(config, out=f"runs/{telling.name(config, loaded)}", dataset=loaded.name)
    assert config.out is not None
    folder = RunFolder(config.out)
    stack.callback(folder.close)
    config, note = _continued(config, folder, ranks)
    loaded = loaded if loaded is not None and loaded.name == config.dataset else _data(config)
    return _Opened(dataclasses.replace(config, dataset=loaded.name), folder, loaded, note, tracker)


def explain_run(config: Config) -> str:
    """The plan: what would train, on what, by which engine, and which parts of the network run fused."""
    asked = config
    loaded = _data(config, may_download=False)
    config, why = _resolved(config, loaded)
    model = network_of(config, loaded.train)
    note = "" if asked.dataset != "auto" else "the plan for the data that is here: --explain downloads nothing"
    lines = [*telling.opening(config, loaded, model, why, note), *str(explain(model)).splitlines()[1:]]
    if config.devices is not None:
        step = Step(model, feed(loaded.train, torch.device(config.device)), config.recipe())
        lines += communication.lines(config, model, step)
    return "\n".join(lines)


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
    spec = spec_of(config)
    engine, why = engine_of(config, device)
    if config.sync_bn and engine in ("triton", "stock"):
        raise UsageError(f"--sync-bn is the reference and the native engine's, this run's is {engine} ({why}); leave it out")
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
