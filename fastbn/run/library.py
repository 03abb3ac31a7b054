"""The folder of a training that a program starts: `fastbn.fit(…, out=, resume=)` keeps what a run of the
command line keeps."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastbn.data.datasets import Loaded
from fastbn.data.feed import Feed
from fastbn.data.names import DATASETS, DEFAULT_DIR
from fastbn.engine.fuse import fused_forward
from fastbn.errors import UsageError
from fastbn.models.network import Network
from fastbn.recipe import ResolvedRecipe
from fastbn.run import messages
from fastbn.run.folder import RunFolder
from fastbn.run.saver import FolderSaver
from fastbn.run.settings import ResolvedRun
from fastbn.settings.config import Config, differences
from fastbn.trainable import NORMS, trainable
from fastbn.training.distributed.ranks import Ranks


@contextlib.contextmanager
def keep(
    out: str,
    resume: bool,
    model: nn.Module,
    train: Feed,
    test: Feed | None,
    recipe: ResolvedRecipe,
    ranks: Ranks,
) -> Iterator[FolderSaver | None]:
    """Open the folder `out` on the first rank, yield what saves into it, and write the summary where training
    came to its end. Raises UsageError where another run lies there, or for a network that is none of
    fastbn's."""
    if not isinstance(model, Network):
        raise UsageError(
            f"out= keeps fastbn's own networks, got {type(model).__name__}; keep its state_dict() "
            "in a callback"
        )
    with contextlib.ExitStack() as stack:
        saver = ranks.agree(
            lambda: _opened(out, resume, model, train, recipe, ranks, stack) if ranks.first else None
        )
        begun = time.perf_counter()
        yield saver
        if saver is not None and saver.history and test is not None:
            loaded = Loaded(train, test, train.name, "given to fit")  # type: ignore[arg-type]
            run = _run(out, model, train, recipe)
            seconds = time.perf_counter() - begun
            counted = {"ranks": ranks.count, "replicas": 1}
            summary = messages.summary(run, loaded, model, saver.history, seconds) | counted
            saver.folder.write_json("summary.json", summary)


def _opened(
    out: str,
    resume: bool,
    model: Network,
    train: Feed,
    recipe: ResolvedRecipe,
    ranks: Ranks,
    stack: contextlib.ExitStack,
) -> FolderSaver:
    folder = RunFolder(out)
    stack.callback(folder.close)
    settings = _settings(_run(out, model, train, recipe), model)
    if not folder.holds_run:
        folder.check_free()
    elif not resume:
        raise UsageError(f"{folder.path} holds a run; continue it with resume=True, or choose another out")
    elif not folder.has_checkpoint:
        folder.check_begun()
    elif differing := differences(settings, folder.config() or {}):
        raise UsageError(
            f"{folder.path} holds a run with other settings ({'; '.join(differing)}); give the same, or "
            "another out"
        )
    return FolderSaver(folder, settings | {"ranks": ranks.count})


def _run(out: str, model: Network, train: Feed, recipe: ResolvedRecipe) -> ResolvedRun:
    """Return the settings of the run that this training is."""
    spec, fused = model.spec, fused_forward(model)
    fields = {field.name for field in dataclasses.fields(Config)}
    said = {name: value for name, value in spec.said().items() if name in fields and name != "seed"}
    return ResolvedRun(
        asked=Config(**said, seed=recipe.seed, train=_trains(model) or "bn"),
        spec=spec,
        recipe=recipe,
        dataset=train.name,
        engine=fused.engine if fused is not None else "stock",
        why="the model's own",
        device=train.device.type,
        threads=torch.get_num_threads(),
        data_dir=DEFAULT_DIR,
        out=out,
    )


def _settings(run: ResolvedRun, model: Network) -> dict[str, Any]:
    """Return the settings that config.json can hold: of a data set without a name, or of a choice of
    parameters that no word stands for, nothing is said."""
    unsaid = {
        "dataset": run.dataset not in DATASETS,
        "train": _trains(model) is None,
    }
    return {name: value for name, value in run.settings().items() if not unsaid.get(name, False)}


def _trains(model: nn.Module) -> str | None:
    """Return the word for what trains: bn, all or none of them."""
    trains = {id(p) for _, p in trainable(model)}
    norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    return "bn" if trains == norms else "all" if trains == {id(p) for p in model.parameters()} else None
