"""--explain --on h200: the plan for a device that is not here, by its data sheet and the Triton engine's
choices for its capability."""

from __future__ import annotations

import dataclasses

from fastbn.choices import one_of
from fastbn.data.datasets import Loaded
from fastbn.data.feed import feed
from fastbn.data.names import USUAL
from fastbn.errors import MachineError, UsageError
from fastbn.planning import data_sheets, roofline
from fastbn.planning.data_sheets import GB
from fastbn.planning.plan import Planner
from fastbn.planning.step_memory import NetworkMemory
from fastbn.run.build import network_of
from fastbn.run.resolve import resolve
from fastbn.settings.config import Config
from fastbn.trainable import count


def lines(config: Config, name: str, loaded: Loaded) -> list[str]:
    """Return what --explain --on NAME prints. Raises UsageError for a device that is not known, and what only
    the device itself could tell."""
    device = data_sheets.sheet(name)
    if config.batch_size == "auto":
        raise UsageError(f"--batch-size auto is measured, and {device.name} is not here; give a number")
    one_of("--engine of a GPU that is not here", config.engine, ("auto", "triton"))
    try:
        from fastbn.engine.triton.engine import Triton
    except ImportError as error:
        raise MachineError(
            f"--on {name} plans for the Triton engine, and Triton can't be imported ({error})"
        ) from None
    recipe = config.resolved(loaded.train.default_epochs, "mixed", USUAL.get(loaded.name, {}))
    here = resolve(dataclasses.replace(config, device="cpu", engine="stock", precision="fp32"), loaded)
    model = network_of(here, loaded.train).train()
    source = feed(loaded.train, next(model.parameters()).device)
    image = source.sample
    if len(image) != 3:
        raise UsageError(f"--on plans networks that read images, and {source.name} holds words")
    memory = int(recipe.memory * GB) if recipe.memory is not None else device.memory
    planner = Planner(
        NetworkMemory(model, Triton(device.capability)),
        image,
        recipe.precision,
        memory,
        recipe.optimizer,
        source.nbytes,
    )
    plan = planner.plan(recipe.batch_size, recipe.bn_batch)
    some, total = count(model)
    return [
        f"device    {device.name}, {device.memory / GB:.0f} GB ({device.source})",
        f"engine    triton, {recipe.precision}; the step is one CUDA graph a batch size",
        f"network   {model.spec.title}, {some:,} of {total:,} parameters train ({config.train})",
        f"plan      {plan}",
        f"time      {roofline.line(planner, plan, recipe.precision, device)}",
    ]
