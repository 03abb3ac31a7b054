"""A run of the command line: settings -> data set, network, folder -> fit -> summary."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from fastbn.data.datasets import Loaded
from fastbn.data.imagenet.stream import Stream
from fastbn.data.images import Images
from fastbn.errors import Diverged, UsageError
from fastbn.files import shown
from fastbn.machine import devices
from fastbn.models.network import Network
from fastbn.planning import precision
from fastbn.run import messages, rank_messages
from fastbn.run.build import engine_of, network_of, spec_of
from fastbn.run.data import data
from fastbn.run.folder import RunFolder
from fastbn.run.resolve import resolve
from fastbn.run.saver import FolderSaver
from fastbn.run.settings import ResolvedRun
from fastbn.run.tracking import Tracker
from fastbn.run.untrained import measure
from fastbn.settings.config import Config, differences
from fastbn.trainable import trainable
from fastbn.training.checkpoint import CHECKPOINT, save
from fastbn.training.distributed.ranks import Ranks, started
from fastbn.training.fit import feeds, follow, prepared
from fastbn.training.loop import TrainingLoop
from fastbn.training.progress import Progress


def train_run(config: Config) -> str:
    """Train, among torchrun's ranks where it started this process, and return the line that sums it up.
    Raises UsageError, MachineError, Diverged, Stopped."""
    run: TrainingRun | None = None
    with started(config.rank_timeout, config.device) as ranks, contextlib.ExitStack() as stack:
        bar = Progress(0, ranks.first)
        try:
            run = ready(config, ranks, stack, bar)
            history = follow(run.loop(bar, ranks)) if trainable(run.model) else run.measured()
            result = run.finished(history)
            for line in messages.next_steps(run.settings) if bar.on_terminal else []:
                bar.say(line)
            return result
        except (Diverged, KeyboardInterrupt) as error:
            if run is None or run.folder is None:
                raise
            raise type(error)(f"{error}; {run.folder.kept()}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingRun:
    """A run that can train: everything resolved, its folder open and its first lines said. On the first
    rank alone it has a folder."""

    settings: ResolvedRun
    loaded: Loaded
    model: Network
    train: Images | Stream
    val: Images | Stream | None
    folder: RunFolder | None
    saver: FolderSaver | None
    tracker: Tracker | None
    beside: dict[str, int]  # what else trains: ranks and replicas, counted
    begun: float

    @property
    def log(self) -> Callable[[dict[str, Any]], None] | None:
        return self.tracker.log if self.tracker is not None else None

    def loop(self, bar: Progress, ranks: Ranks) -> TrainingLoop:
        """Return the training of the network, ready to be followed."""
        sets, recipe = feeds(self.model, self.train, self.loaded.test, self.val), self.settings.recipe
        replicas = self.beside["replicas"]
        return prepared(self.model, *sets, recipe, bar, self.saver, self.log, ranks, replicas)

    def measured(self) -> list[dict[str, Any]]:
        """Return the history of a run in which nothing trains."""
        history = measure(self.model, self.train, self.loaded.test, self.settings.recipe)
        if self.tracker is not None:
            self.tracker.log(history[0])
        if self.folder is not None and self.saver is not None:
            self.folder.begin(self.saver.settings, [])
            self.folder.add_metrics(history[0])
            save(self.model, self.folder.path / CHECKPOINT, config=self.settings.settings())
        return history

    def finished(self, history: list[dict[str, Any]]) -> str:
        """Write the summary, and return the line that sums the run up. Raises Diverged where the network that
        was trained has no finite loss on the test set."""
        seconds = time.perf_counter() - self.begun
        summary = messages.summary(self.settings, self.loaded, self.model, history, seconds) | self.beside
        if self.folder is not None:
            self.folder.write_json("summary.json", summary)
        if not math.isfinite(summary["test_loss"]):
            raise Diverged(
                f"the test loss is {summary['test_loss']} after the last epoch, the accuracy "
                f"{summary['test_accuracy']:.4f}; lower --lr or add --warmup-epochs"
            )
        return messages.last_line(self.settings, self.loaded, self.model, summary)


def ready(
    config: Config,
    ranks: Ranks,
    stack: contextlib.ExitStack,
    speak: Progress,
    loaded: Loaded | None = None,
    replicas: int = 1,
) -> TrainingRun:
    """Return the run of a config, ready to train. The first rank alone opens the folder, and decides on the
    data; `stack` closes the folder.

    loaded: the data set, where it has been read already; replicas: how many runs, this among them, share the
    process."""
    begun = time.perf_counter()
    opened = ranks.agree(lambda: _opened(config, ranks, stack, loaded) if ranks.first else None)
    config, note, before = ranks.told(
        (opened.config, opened.note, opened.before) if opened else (config, "", None)
    )
    folder = opened.folder if opened else None
    tracker = opened.tracker if opened else None

    def made() -> tuple[ResolvedRun, Loaded, Network]:
        there = opened.loaded if opened else data(config, spec_of(config).family, may_download=False)
        resolved = resolve(config, there, ranks)
        if folder is not None and folder.has_checkpoint:
            differing = differences(resolved.settings(), folder.checkpoint()[1].get("config", {}))
            if differing:
                raise UsageError(
                    f"{folder.path} holds a run with other settings ({'; '.join(differing)}); give the "
                    "same, or another --out"
                )
        return resolved, there, network_of(resolved, there.train)

    run, loaded, model = ranks.agree(made)
    train: Images | Stream = loaded.train
    val: Images | Stream | None = None
    if config.val is not None:
        train, val = train.split(config.val, config.seed)
    saver = None
    if folder is not None:
        note += rank_messages.other_ranks(run.recipe, before, ranks)
        busy = messages.busy(run.device, run.threads)
        for line in [*messages.opening(run, loaded, model, note, ranks, replicas), *busy]:
            speak.say(line)
        saver = FolderSaver(folder, run.settings() | {"ranks": ranks.count})
        if tracker is not None:
            tracker.start(folder.path.name, saver.settings)
    beside = {"ranks": ranks.count, "replicas": replicas}
    return TrainingRun(run, loaded, model, train, val, folder, saver, tracker, beside, begun)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """The first rank's decisions for all: the config, its folder and data set named; `before`, the number of
    ranks that have saved the run that goes on."""

    config: Config
    folder: RunFolder
    loaded: Loaded
    note: str
    before: int | None
    tracker: Tracker | None


def _opened(config: Config, ranks: Ranks, stack: contextlib.ExitStack, loaded: Loaded | None) -> _Opened:
    spec, device = spec_of(config), devices.choose_device(config.device)  # both told before any data is read
    precision.check(config.precision, device)
    devices.check_recipe(config.bn_stats, device)
    engine_of(config, spec.family, device)
    tracker = Tracker(config.track) if config.track else None
    if tracker is not None:
        stack.callback(tracker.finish)
    out = config.out
    if out is None:
        loaded = loaded or data(config, spec.family)  # the folder's name holds the data set's
        config = dataclasses.replace(config, dataset=loaded.name)
        out = f"runs/{messages.name(config, spec, loaded.name)}"
    folder = RunFolder(out)
    stack.callback(folder.close)
    config, note, before = _continued(config, folder)
    if loaded is None or config.dataset not in ("auto", loaded.name):
        loaded = data(config, spec.family)
    config = dataclasses.replace(config, dataset=loaded.name, out=out)
    return _Opened(config, folder, loaded, note, before, tracker)


def _continued(config: Config, folder: RunFolder) -> tuple[Config, str, int | None]:
    """Return the config completed by that of the run in the folder, what to say of it, and how many ranks
    have saved it."""
    if not folder.holds_run:
        folder.check_free()
        return config, f"nothing saved in {folder.path}: starting afresh" if config.resume else "", None
    if not config.resume:
        raise UsageError(f"{folder.path} holds a run; continue it with --resume, or choose another --out")
    if not folder.has_checkpoint:
        folder.check_begun()
        return config, f"nothing saved in {folder.path}: starting afresh", None
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
    return config.completed_by(saved), f"resuming {folder.path}{again}", saved.get("ranks", 1)
