"""Read the state of a run off its folder: finished, under way, failed or not begun, and its
figures in percent."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastbn import files
from fastbn.data.names import USUAL
from fastbn.errors import UsageError
from fastbn.experiments.preset import Job
from fastbn.settings import saved
from fastbn.settings.config import differences

REMEDY = "move the folder away, or choose another --out"
if TYPE_CHECKING:
    from torch import Tensor

ERROR = "error.txt"  # the line with which a run ended that did not finish


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A run's state: `state` is done, partial, failed or open; `last` the last epoch's metrics, {} where
    there are none."""

    state: str
    last: dict[str, Any]
    epochs: int  # that are over
    summary: dict[str, Any]
    error: str = ""


def outcome(job: Job) -> Outcome:
    """Return a run's outcome. Raises UsageError where the folder holds a run with other settings, or a
    damaged one."""
    config, result = job.out / "config.json", job.out / "summary.json"
    held = saved.settings(saved.json_file(config, REMEDY), config, REMEDY) if files.look(config) else {}
    summary = saved.summary(result, ("test_accuracy",), REMEDY) if files.look(result) else {}
    lines = saved.lines(job.out / "metrics.jsonl", ("test_accuracy",), being_written=True, remedy=REMEDY)
    last = lines[-1] if lines else {}
    if held:
        asked = job.config
        if lacking := [name for name in ("epochs", "precision") if held.get(name) is None]:
            raise UsageError(f"{config} says nothing of {', '.join(lacking)}; {REMEDY}")
        # what is open of the recipe means the default, not the saved
        usual = USUAL.get(held.get("dataset", ""), {})
        mine = asked.settings(asked.epochs or held["epochs"], held["precision"], usual)
        mine |= {name: held[name] for name, value in mine.items() if value in (None, "auto") and name in held}
        if differing := differences(mine, held):
            raise UsageError(
                f"{job.out} holds a run with other settings ({'; '.join(differing)}); move it away, or "
                "choose another --out"
            )
        if summary and (len(lines) >= mine["epochs"] or asked.train == "none"):
            return Outcome("done", last, len(lines), summary)
    error = job.out / ERROR
    if files.is_file(error):
        return Outcome("failed", last, len(lines), summary, _said(error))
    return Outcome("partial" if held else "open", last, len(lines), summary)


def figure(job: Job, result: Outcome, of: str) -> float | None:
    """Return a figure of a finished run in percent: a metric of its last epoch, or the share of γ below 0.01;
    None where it has none."""
    if of == "gamma_below_0.01":
        return _small_gammas(job.out)
    value = result.last.get(of, result.summary.get(of))
    return None if value is None else 100.0 * value


def _small_gammas(run: Path) -> float:
    """Return the share of |γ| below 0.01 in percent."""
    return 100.0 * float((gammas(run).abs() < 0.01).double().mean())


def gammas(run: Path) -> Tensor:
    """Return every γ of a run's network as it was saved last, flat; empty where it has none."""
    import torch

    from fastbn.trainable import NORMS
    from fastbn.training.checkpoint import load

    norms = [module for module in load(run, "stock").modules() if isinstance(module, NORMS)]
    weights = [
        module.weight.detach().flatten() for module in norms if isinstance(module.weight, torch.Tensor)
    ]
    return torch.cat(weights) if weights else torch.empty(0)


def _said(path: Path) -> str:
    """Return the line in an error.txt."""
    try:
        return files.shown(files.read(path, files.SMALL).decode("utf-8", "replace").strip())
    except OSError as error:
        return f"{path.name}: {files.reason(error)}"
