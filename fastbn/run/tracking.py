"""--track NAME: a run's epochs told to a module that has init, log and finish, as wandb and trackio do."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from fastbn.errors import MachineError, UsageError
from fastbn.files import shown

PROJECT = "fastbn"


class Tracker:
    """One run at a tracking module. Numbers alone are told, by the names that metrics.jsonl gives them."""

    def __init__(self, name: str):
        """Import the module. Raises MachineError where it is not installed, UsageError where it is no
        tracker."""
        if not all(part.isidentifier() for part in name.split(".")):
            raise UsageError(
                f"--track {shown(name)}: no module has such a name; give one with init, log and finish, "
                "such as wandb"
            )
        try:
            self._module: ModuleType = importlib.import_module(name)
        except ImportError as error:
            raise MachineError(
                f"--track {name}: it can't be imported ({error}); install it, or leave --track out"
            ) from error
        self._started = False
        missing = [
            function
            for function in ("init", "log", "finish")
            if not callable(getattr(self._module, function, None))
        ]
        if missing:
            raise UsageError(
                f"--track {name}: the module has no {', '.join(missing)}; give one with init, log and "
                "finish, such as wandb"
            )

    def start(self, run: str, config: dict[str, Any]) -> None:
        self._module.init(project=PROJECT, name=run, config=config)
        self._started = True

    def log(self, line: dict[str, Any]) -> None:
        """Tell an epoch's metrics, as fit hands them on."""
        told = {name: value for name, value in line.items() if isinstance(value, (int, float))}
        self._module.log(told, step=line["epoch"])

    def finish(self) -> None:
        """End what was started, also where training did not come to its end."""
        if self._started:
            self._module.finish()
