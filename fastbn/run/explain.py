"""--explain: the plan of a run, and nothing else."""

from __future__ import annotations

import dataclasses

import torch

from fastbn.data.feed import feed
from fastbn.machine import devices
from fastbn.planning import data_sheets, roofline
from fastbn.planning.explain import explain
from fastbn.run import explain_device, explain_devices, messages
from fastbn.run.build import network_of, spec_of
from fastbn.run.data import data
from fastbn.run.resolve import resolve
from fastbn.settings.config import Config
from fastbn.training.planner import planner_of
from fastbn.training.step import TrainingStep


def explain_run(config: Config) -> str:
    """Return the plan: what would train, on what, by which engine and in how much memory, and which parts of
    the network run fused."""
    loaded = data(config, spec_of(config).family, may_download=False)
    if config.on is not None:
        return "\n".join(explain_device.lines(config, config.on, loaded))
    run = resolve(config, loaded)
    model, recipe, device = network_of(run, loaded.train), run.recipe, torch.device(run.device)
    note = (
        "" if config.dataset != "auto" else "the plan for the data that is here: --explain downloads nothing"
    )
    lines = messages.opening(run, loaded, model, note)
    source = feed(loaded.train, device)
    planner = planner_of(model.train(), source, recipe)
    if planner is not None:
        batch = min(recipe.batch_size, len(source))  # which may hold fewer
        plan = planner.plan(batch, recipe.bn_batch)
        least = roofline.line(planner, plan, recipe.precision, data_sheets.here(device), _busy(device))
        lines += [f"plan      {plan}", f"time      {least}"]
        explained = explain(model, planner.image, batch)
    else:
        explained = explain(model)
    # why the run has this engine, not that fuse was told so
    lines += str(dataclasses.replace(explained, why=run.why)).splitlines()
    if config.devices is not None:
        step = TrainingStep(model, source, recipe, planner=planner)
        lines += explain_devices.lines(step, recipe, config.devices, config.step_seconds)
    return "\n".join(lines)


def _busy(device: torch.device) -> str:
    """Return what takes a part of the processors that the rates of a CPU are measured with."""
    load, processors = devices.load(), devices.processors()
    if device.type != "cpu" or load <= processors:
        return ""
    return f"while {load:.1f} processes want {processors} processors"
