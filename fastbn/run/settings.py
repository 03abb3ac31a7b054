"""A run's settings with nothing left open. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastbn.models.families import Spec
from fastbn.recipe import ResolvedRecipe
from fastbn.settings.config import Config


@dataclasses.dataclass(frozen=True)
class ResolvedRun:
    """The settings that `fastbn.run.resolve.resolve` makes of a Config, by which train, explain and the
    experiments run.

    asked: the Config, whose other settings are never open (a None there means "without"). spec: what the
    network is made from. dataset: its name, never "auto". engine: its name, and `why` it is that one. device:
    "cpu", "cuda" or "xla". threads: of the CPU. data_dir, out: folders.
    """

    asked: Config
    spec: Spec
    recipe: ResolvedRecipe
    dataset: str
    engine: str
    why: str
    device: str
    threads: int
    data_dir: str
    out: str

    def settings(self) -> dict[str, Any]:
        """Return every setting by name as config.json holds them, tuples as lists."""
        content = self.asked.asdict() | dataclasses.asdict(self.recipe)
        content |= {name: getattr(self.spec, name) for name in ("depth", "family", "width", "conv_bias")}
        names = ("dataset", "engine", "device", "threads", "data_dir", "out")
        content |= {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}
