"""Every preset by name. Imports no torch."""

from __future__ import annotations

from fastbn.choices import one_of
from fastbn.experiments import extensions, keras, paper
from fastbn.experiments.preset import Preset
from fastbn.experiments.torri import presets as torri
from fastbn.experiments.wandb import presets as wandb

PRESETS: dict[str, Preset] = {
    preset.name: preset for source in (paper, wandb, keras, torri, extensions) for preset in source.PRESETS
}


def preset(name: str) -> Preset:
    """Return the preset of that name; UsageError, naming the nearest, where there is none."""
    return PRESETS[one_of("preset", name, PRESETS)]
