"""A run's folder: its lock, config.json, metrics.jsonl, checkpoint and summary.json."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from fastbn.errors import MachineError, UsageError
from fastbn.training import checked_file
from fastbn.training.checkpoint import CHECKPOINT

BEST = "best.safetensors"


class RunFolder:
    """Opened by one process at a time: an flock, so a kill leaves no lock behind."""

    def __init__(self, path: str | os.PathLike[str]):
        """Makes the folder if need be and takes its lock. Raises UsageError if another run holds it,
        MachineError if it can't be made."""
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "lock", "w")  # noqa: SIM115 (held for as long as the run lasts)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{self.path} is in use by another run; wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise MachineError(
                f"cannot write to {self.path}: {error.strerror or error}; choose another --out"
            ) from error

    def close(self) -> None:
        self._lock.close()

    @property
    def holds_run(self) -> bool:
        return any((self.path / name).exists() for name in ("config.json", "metrics.jsonl", CHECKPOINT))

    @property
    def has_checkpoint(self) -> bool:
        return (self.path / CHECKPOINT).exists()

    def config(self) -> dict[str, Any] | None:
        """The settings of the run that lies here, or None."""
        return read_json(self.path / "config.json") if (self.path / "config.json").exists() else None

    def write_json(self, name: str, value: Any) -> None:
        self._replace(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Appends one epoch's line and flushes it to the disk."""
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise MachineError(
                f"could not write {path}: {error.strerror or error}; the checkpoint is intact"
            ) from error

    def keep_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """The lines of the first `epochs` epochs; those beyond, and one that a kill cut short, are dropped
        from the file.

        Raises UsageError, the file untouched, where one of those epochs has no line.
        """
        path = self.path / "metrics.jsonl"
        texts = (
            path.read_text(encoding="utf-8", errors="replace").splitlines()[:epochs] if path.exists() else []
        )
        lines = []
        for epoch in range(epochs):
            try:
                lines.append(json.loads(texts[epoch]))
                whole = lines[epoch]["epoch"] == epoch
            except (IndexError, KeyError, TypeError, ValueError):
                whole = False
            if not whole:
                raise UsageError(
                    f"{path}: no line of epoch {epoch + 1} of {epochs} saved; the folder is damaged, choose "
                    "another --out"
                )
        self._replace("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        return lines

    def save(self, name: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        checked_file.write(self.path / name, tensors, header)

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return checked_file.read(self.path / CHECKPOINT)

    def _replace(self, name: str, text: str) -> None:
        part = self.path / f"{name}.part"
        try:
            with open(part, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path / name)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise MachineError(f"could not write {self.path / name}: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A run's JSON file; UsageError for one that can't be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: not readable as JSON ({error}); the folder is damaged, choose another --out"
        ) from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: not a run's file; the folder is damaged, choose another --out")
    return found


def json_ready(config: Any) -> dict[str, Any]:
    """A config as JSON gives it back: tuples as lists."""
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return found
