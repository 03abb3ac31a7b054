"""A run of the command line: settings -> data set, network, folder -> fit -> summary."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from fastbn import devices
from fastbn.config import Config
from fastbn.data.datasets import Loaded
from fastbn.data.imagenet.stream import Stream
from fastbn.data.images import Images
from fastbn.errors import Diverged, UsageError
from fastbn.files import shown
from fastbn.models.network import Network
from fastbn.planning import precision
from fastbn.run import messages, rank_messages
from fastbn.run.build import engine_of, network_of, spec_of
from fastbn.run.folder import RunFolder, json_ready
from fastbn.run.resolve import data, implied, resolved, sized
from fastbn.run.saver import FolderSaver
from fastbn.run.tracking import Tracker
from fastbn.run.untrained import measure
from fastbn.trainable import trainable
from fastbn.training.checkpoint import CHECKPOINT, save
from fastbn.training.distributed.ranks import Ranks, started
from fastbn.training.fit import fit
from fastbn.training.progress import Progress


def train_run(config: Config) -> str:
    """Trains, among torchrun's ranks where it started this process, and returns the line that sums it up.
    Raises UsageError, MachineError, Diverged, Stopped."""
    run: TrainingRun | None = None
    with started(config.rank_timeout, config.device) as ranks, contextlib.ExitStack() as stack:
        try:
            run = ready(implied(config), ranks, stack, Progress(0, ranks.first))
            if not trainable(run.model):
                return run.finished(run.measured())
            sets, recipe = (run.train, run.loaded.test, run.val), run.config.recipe()
            return run.finished(
                fit(run.model, *sets, saver=run.saver, ranks=ranks, recipe=recipe, log=run.log)
            )
        except (Diverged, KeyboardInterrupt) as error:
            if run is None or run.folder is None:
                raise
            raise type(error)(f"{error}; {run.folder.kept()}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingRun:
    """A run that can train: everything resolved, its folder open and its first lines said. On the first
    rank alone it has a folder."""

    config: Config
    loaded: Loaded
    why: str
    model: Network
    train: Images | Stream
    val: Images | Stream | None
    folder: RunFolder | None
    saver: FolderSaver | None
    settings: dict[str, Any]  # as config.json says them
    tracker: Tracker | None
    beside: dict[str, int]  # what else trains: ranks and replicas, counted
    begun: float

    @property
    def log(self) -> Callable[[dict[str, Any]], None] | None:
        return self.tracker.log if self.tracker is not None else None

    def measured(self) -> list[dict[str, Any]]:
        """The history of a run in which nothing trains."""
        history = measure(self.model, self.train, self.loaded.test, self.config.recipe())
        if self.tracker is not None:
            self.tracker.log(history[0])
        if self.folder is not None:
            self.folder.begin(self.settings, [])
            self.folder.add_metrics(history[0])
            save(self.model, self.folder.path / CHECKPOINT, config=json_ready(self.config))
        return history

    def finished(self, history: list[dict[str, Any]]) -> str:
        """Writes the summary, and returns the line that sums the run up."""
        seconds = time.perf_counter() - self.begun
        summary = (
            messages.summary(self.config, self.loaded, self.model, self.why, history, seconds) | self.beside
        )
        if self.folder is not None:
            self.folder.write_json("summary.json", summary)
        return messages.last_line(self.config, self.loaded, self.model, summary)


def ready(
    config: Config,
    ranks: Ranks,
    stack: contextlib.ExitStack,
    speak: Progress,
    loaded: Loaded | None = None,
    replicas: int = 1,
) -> TrainingRun:
    """The first rank alone opens the folder, and decides on the data; `stack` closes the folder.
    loaded: the data set, where it has been read already; replicas: how many runs, this among them, share the
    process."""
    begun = time.perf_counter()
    opened = ranks.agree(lambda: _opened(config, ranks, stack, loaded) if ranks.first else None)
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
                raise UsageError(
                    f"{folder.path} holds a run with other settings ({'; '.join(differing)}); give the "
                    "same, or another --out"
                )
        return complete, loaded, why, model

    config, loaded, why, model = ranks.agree(made)
    train: Images | Stream = loaded.train
    val: Images | Stream | None = None
    if config.val is not None:
        train, val = train.split(config.val, config.seed)
    saver, settings = None, json_ready(config) | {"ranks": ranks.count}
    if folder is not None:
        for line in messages.opening(config, loaded, model, why, note, ranks, replicas):
            speak.say(line)
        saver = FolderSaver(folder, settings)
        if tracker is not None:
            tracker.start(folder.path.name, settings)
    beside = {"ranks": ranks.count, "replicas": replicas}
    return TrainingRun(
        config, loaded, why, model, train, val, folder, saver, settings, tracker, beside, begun
    )


@dataclasses.dataclass(frozen=True)
class _Opened:
    """What the first rank decides for all."""

    config: Config
    folder: RunFolder
    loaded: Loaded
    note: str
    tracker: Tracker | None


def _opened(config: Config, ranks: Ranks, stack: contextlib.ExitStack, loaded: Loaded | None) -> _Opened:
    spec_of(config)  # a wrong depth is told before any data is read
    device = devices.choose_device(config.device)
    precision.check(config.precision, device)
    devices.check_recipe(config.bn_stats, device)
    engine_of(config, device)
    tracker = Tracker(config.track) if config.track else None
    if tracker is not None:
        stack.callback(tracker.finish)
    if config.out is None:
        loaded = loaded or data(config)  # the folder's name holds the data set's
        config = dataclasses.replace(config, out=f"runs/{messages.name(config, loaded)}", dataset=loaded.name)
    assert config.out is not None
    folder = RunFolder(config.out)
    stack.callback(folder.close)
    config, note = _continued(config, folder, ranks)
    loaded = loaded if loaded is not None and config.dataset in ("auto", loaded.name) else data(config)
    return _Opened(dataclasses.replace(config, dataset=loaded.name), folder, loaded, note, tracker)


def _continued(config: Config, folder: RunFolder, ranks: Ranks) -> tuple[Config, str]:
    """The config completed by that of the run in the folder, and what to say of it."""
    if not folder.holds_run:
        folder.check_free()
        return config, f"nothing saved in {folder.path}: starting afresh" if config.resume else ""
    if not config.resume:
        raise UsageError(f"{folder.path} holds a run; continue it with --resume, or choose another --out")
    if not folder.has_checkpoint:
        folder.check_begun()
        return config, f"nothing saved in {folder.path}: starting afresh"
    saved = folder.config()
    if saved is None:
        raise UsageError(
            f"{folder.path} holds a checkpoint but no config.json; the folder is damaged, choose another "
            "--out"
        )
    tracked = saved.get("track")
    again = (
        f"; it was tracked by {shown(tracked, 40)}, give --track again to go on with that"
        if tracked and not config.track
        else ""
    )
    completed = config.completed_by(saved)
    return (
        completed,
        f"resuming {folder.path}{rank_messages.other_ranks(completed, saved.get('ranks', 1), ranks)}{again}",
    )
