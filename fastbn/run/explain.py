"""--explain: the plan of a run, and nothing else."""

from __future__ import annotations

import torch

from fastbn.config import Config
from fastbn.data.feed import feed
from fastbn.planning import data_sheets, roofline
from fastbn.planning.explain import explain
from fastbn.run import explain_device, explain_devices, messages
from fastbn.run.build import network_of
from fastbn.run.resolve import data, implied, resolved, sized
from fastbn.training.planner import planner_of
from fastbn.training.step import TrainingStep


def explain_run(config: Config) -> str:
    """The plan: what would train, on what, by which engine and in how much memory, and which parts of the
    network run fused."""
    asked = config = implied(config)
    loaded = data(config, may_download=False)
    if config.on is not None:
        return "\n".join(explain_device.lines(config, loaded))
    config, why = resolved(config, loaded)
    model = network_of(config, loaded.train)
    config = sized(config, loaded, model)
    note = (
        "" if asked.dataset != "auto" else "the plan for the data that is here: --explain downloads nothing"
    )
    lines = messages.opening(config, loaded, model, why, note)
    device = torch.device(config.device)
    source = feed(loaded.train, device)
    planner = planner_of(model.train(), source, config.recipe())
    if planner is not None:
        plan = planner.plan(config.batch, config.bn_batch)
        least = roofline.line(planner, plan, config.precision, data_sheets.here(device))
        lines += [f"plan      {plan}", f"time      {least}"]
    lines += str(explain(model, *((planner.image, config.batch) if planner else ()))).splitlines()
    if config.devices is not None:
        lines += explain_devices.lines(
            config, model, TrainingStep(model, source, config.recipe(), planner=planner)
        )
    return "\n".join(lines)
