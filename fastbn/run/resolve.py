"""A run's settings with nothing left open: the data set, the engine, the device, the recipe, the batch
size."""

from __future__ import annotations

import dataclasses
import functools
import os

import torch

from fastbn.data.datasets import Loaded
from fastbn.data.feed import feed
from fastbn.data.names import DEFAULT_DIR, USUAL
from fastbn.engine.triton.self_check import SWITCH
from fastbn.errors import UsageError
from fastbn.machine import devices
from fastbn.planning import precision
from fastbn.run import messages
from fastbn.run.build import engine_of, network_of, spec_of, vocabulary_of
from fastbn.run.settings import ResolvedRun
from fastbn.settings.config import Config
from fastbn.training.batch_size import fastest
from fastbn.training.distributed.ranks import ALONE, Ranks
from fastbn.training.progress import Progress


def resolve(config: Config, loaded: Loaded, ranks: Ranks = ALONE) -> ResolvedRun:
    """Return the run that this config asks for, on this data set and this machine, with nothing left open; a
    batch size of "auto" is measured. Torch's threads are set.

    Raises UsageError and MachineError for what can't be."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.no_self_check:
        os.environ[SWITCH] = "0"  # ranks and decoders inherit it
    device = devices.choose_device(config.device)
    spec = spec_of(config, len(loaded.train.classes), len(vocabulary_of(loaded.train)))
    engine, why = engine_of(config, spec.family, device)
    if config.sync_bn and engine in ("triton", "stock"):
        raise UsageError(
            f"--sync-bn is the reference and the native engine's, this run's is {engine} ({why}); leave it "
            "out"
        )
    recipe_at = functools.partial(
        config.resolved,
        loaded.train.default_epochs,
        precision.automatic(engine, device),
        USUAL.get(loaded.name, {}),
    )
    run = ResolvedRun(
        asked=config,
        spec=spec,
        recipe=recipe_at(),
        dataset=loaded.name,
        engine=engine,
        why=why,
        device=device.type,
        threads=torch.get_num_threads(),
        data_dir=config.data_dir or DEFAULT_DIR,
        out=config.out or f"runs/{messages.name(config, spec, loaded.name)}",
    )
    if config.batch_size != "auto":
        return run
    if ranks.count > 1:
        raise UsageError(
            f"--batch-size auto is measured by one process, and this is one of {ranks.count} ranks; give a "
            "number"
        )
    speak = Progress(run.recipe.epochs, True).say
    size = fastest(network_of(run, loaded.train), feed(loaded.train, device), recipe_at, speak)
    return dataclasses.replace(run, recipe=recipe_at(batch=size))
