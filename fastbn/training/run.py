"""A run of the command line: settings -> data set, network, folder -> fit -> summary."""

from __future__ import annotations

import contextlib
import dataclasses
import time

from fastbn.config import Config
from fastbn.data.choose import Loaded
from fastbn.data.images import Images
from fastbn.data.stream.stream import Stream
from fastbn.errors import UsageError
from fastbn.models.network import Network
from fastbn.trainable import trainable
from fastbn.training import machine, precision, telling
from fastbn.training.building import engine_of, network_of, spec_of
from fastbn.training.checkpoint import CHECKPOINT, save
from fastbn.training.distributed import sharing
from fastbn.training.distributed.ranks import Ranks, started
from fastbn.training.folder import RunFolder, json_ready
from fastbn.training.loop import fit
from fastbn.training.measure import measure
from fastbn.training.progress import Progress
from fastbn.training.resolving import data, implied, resolved, sized
from fastbn.training.saving import Saver
from fastbn.training.tracking import Tracker


def train_run(config: Config) -> str:
    """Trains, among torchrun's ranks where it started this process, and returns the line that sums it up.
    Raises UsageError, MachineError, Diverged, Stopped."""
    with started(config.rank_timeout, config.device) as ranks, contextlib.ExitStack() as stack:
        return _train(implied(config), ranks, stack)


def _train(config: Config, ranks: Ranks, stack: contextlib.ExitStack) -> str:
    """The first rank alone opens the folder, and decides on the data; `stack` closes the folder."""
    begun = time.perf_counter()
    opened = ranks.agree(lambda: _opened(config, ranks, stack) if ranks.first else None)
    config, note = ranks.told((opened.config, opened.note) if opened else (config, ""))
    folder = opened.folder if opened else None
    tracker = opened.tracker if opened else None

    def made() -> tuple[Config, Loaded, str, Network]:
        loaded = opened.loaded if opened else data(config, may_download=False)
        complete, why = resolved(config, loaded)
        model = network_of(complete, loaded.train)
        complete = sized(complete, loaded, model, ranks)
        if folder is not None and folder.has_checkpoint:
            differing = complete.differences(folder.checkpoint()[1].get("config", {}))
            if differing:
                raise UsageError(f"{folder.path} holds a run with other settings ({'; '.join(differing)}); give the same, or another --out")
        return complete, loaded, why, model

    config, loaded, why, model = ranks.agree(made)
    train: Images | Stream = loaded.train
    val: Images | Stream | None = None
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
    machine.check_recipe(config.bn_stats, device)
    engine_of(config, device)
    tracker = Tracker(config.track) if config.track else None
    if tracker is not None:
        stack.callback(tracker.finish)
    loaded = None
    if config.out is None:
        loaded = data(config)  # the folder's name holds the data set's
        config = dataclasses.replace(config, out=f"runs/{telling.name(config, loaded)}", dataset=loaded.name)
    assert config.out is not None
    folder = RunFolder(config.out)
    stack.callback(folder.close)
    config, note = _continued(config, folder, ranks)
    loaded = loaded if loaded is not None and loaded.name == config.dataset else data(config)
    return _Opened(dataclasses.replace(config, dataset=loaded.name), folder, loaded, note, tracker)


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
