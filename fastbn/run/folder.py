"""A run's folder: its lock, config.json, metrics.jsonl, checkpoint and summary.json."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from fastbn import files
from fastbn.errors import MachineError, UsageError
from fastbn.settings import saved
from fastbn.training import checked_file
from fastbn.training.checkpoint import CHECKPOINT

BEST = "best.safetensors"
LOCK, CONFIG, METRICS, SUMMARY = "lock", "config.json", "metrics.jsonl", "summary.json"
LOGS = ("log.txt", "error.txt")  # what python -m fastbn.experiments leaves beside a run


class RunFolder:
    """A run's folder is opened by one process at a time: an flock, so a kill leaves no lock behind. Nothing
    in it is written before a run's first write, and where that never comes, `close` leaves the folder as it
    was."""

    def __init__(self, path: str | os.PathLike[str]):
        """Make the folder if need be and take its lock. Raises UsageError if another run holds it,
        MachineError if it can't be made."""
        self.path = Path(path)
        self._made = [folder for folder in (self.path, *self.path.parents) if not os.path.lexists(folder)]
        self._written, self._metrics = False, b""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(self.path / LOCK):
                self._made.insert(0, self.path / LOCK)
            self._lock = self._locked()
        except BlockingIOError:  # whose holder made what we thought ours
            raise UsageError(
                f"{self.path} is in use by another run; wait for it, or choose another --out"
            ) from None
        except (OSError, ValueError) as error:
            self._unmake()
            raise MachineError(
                f"cannot write to {self.path}: {files.reason(error)}; choose another --out"
            ) from error

    def _locked(self) -> BinaryIO:
        """Return the lock, which is what lies at its path: one that was unlinked meanwhile keeps nobody
        out."""
        while True:
            # held for as long as the run lasts
            lock = open(self.path / LOCK, "ab", opener=_unlinked)  # noqa: SIM115
            try:
                if not stat.S_ISREG(os.fstat(lock.fileno()).st_mode):
                    raise OSError("its lock is no regular file")
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(lock.fileno()), os.lstat(self.path / LOCK)):
                        return lock
            except BaseException:
                lock.close()
                raise
            lock.close()

    def close(self) -> None:
        """Give the lock back. What a run that was refused has made goes."""
        if not self._written:
            self._unmake()
        self._lock.close()

    def _unmake(self) -> None:
        """Remove the lock and the folders that this object has made, as far as they are empty."""
        with contextlib.suppress(OSError, ValueError):
            for made in self._made:
                if made.is_dir():
                    made.rmdir()
                else:
                    made.unlink(missing_ok=True)

    @property
    def holds_run(self) -> bool:
        return any(os.path.lexists(self.path / name) for name in (CONFIG, METRICS, CHECKPOINT))

    @property
    def has_checkpoint(self) -> bool:
        return os.path.lexists(self.path / CHECKPOINT)

    def check_free(self) -> None:
        """Raise UsageError where files lie here that no run has written; empty ones are nobody's."""
        for entry in sorted(self.path.iterdir()):
            ours = entry.name in LOGS or files.PART.fullmatch(entry.name) is not None
            if not ours and (entry.is_symlink() or not entry.is_file() or entry.stat().st_size):
                said = files.shown(repr(entry.name), 60)
                raise UsageError(
                    f"{self.path} holds {said}, which is no run's; choose an empty folder for --out"
                )

    def check_begun(self) -> None:
        """Raise UsageError where a run lies here that came further than its first epoch, and its checkpoint
        is gone; or where what lies here is none."""
        epochs = len(saved.lines(self.path / METRICS, (), 2, being_written=True))
        if epochs > 1 or self.config() is None or os.path.lexists(self.path / SUMMARY):
            raise UsageError(
                f"{self.path} holds a run without its {CHECKPOINT}; the folder is damaged, choose another "
                "--out"
            )

    def config(self) -> dict[str, Any] | None:
        """Return the settings of the run that lies here, or None. Raises UsageError for what they can't
        be."""
        path = self.path / CONFIG
        return saved.settings(saved.json_file(path), path) if os.path.lexists(path) else None

    def begin(self, config: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        """Write for the first time: the settings, and of the metrics these lines; what a kill has left
        goes."""
        with contextlib.suppress(OSError):
            for entry in self.path.iterdir():
                if files.PART.fullmatch(entry.name):
                    entry.unlink()
        self.write_json(CONFIG, config)
        self._metrics = b"".join(_line(line) for line in lines)
        self._replace(METRICS, self._metrics)

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as a JSON file of this name, whole or not at all. Raises MachineError where the
        folder can't be written."""
        self._replace(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Append one epoch's line and flush it to the disk. A file that is no longer as it was left is
        written anew."""
        path, before, added = self.path / METRICS, len(self._metrics), _line(line)
        self._metrics += added
        try:
            with open(path, "r+b", opener=_unlinked) as file:
                if os.fstat(file.fileno()).st_size == before:
                    file.seek(before)
                    file.write(added)
                    file.flush()
                    os.fsync(file.fileno())
                    return
        except FileNotFoundError:
            pass
        except OSError as error:
            raise MachineError(f"could not write {path}: {files.reason(error)}; {self.kept()}") from error
        self._replace(METRICS, self._metrics)

    def lines(self, epochs: int) -> list[dict[str, Any]]:
        """Return the metrics' lines of the first `epochs` epochs. Raises UsageError where one of those
        epochs has none."""
        path = self.path / METRICS
        lines = saved.lines(path, saved.FULL_EPOCH, epochs)
        if len(lines) < epochs:
            raise UsageError(f"{path}: no line of epoch {len(lines) + 1} of {epochs} saved; {saved.DAMAGED}")
        return lines

    def save(self, name: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Write tensors and a header as a checked file of this name, whole or not at all. Raises MachineError
        where it cannot be written."""
        self._written = True
        checked_file.write(self.path / name, tensors, header)

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the checkpoint's tensors and its header. Raises UsageError for a damaged one."""
        return checked_file.read(self.path / CHECKPOINT)

    def kept(self) -> str:
        """Return what there is of the run, found out by reading it."""
        if not self.has_checkpoint:
            return "no checkpoint was saved"
        try:
            self.checkpoint()
        except UsageError:
            return "the checkpoint can't be read"
        return "the checkpoint is intact"

    def _replace(self, name: str, content: bytes) -> None:
        self._written = True
        try:
            files.write(self.path / name, content)
        except OSError as error:
            raise MachineError(
                f"could not write {self.path / name}: {files.reason(error)}; {self.kept()}"
            ) from error


def _unlinked(path: str, flags: int) -> int:
    """Open no link's target, and wait for no FIFO."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def _line(line: dict[str, Any]) -> bytes:
    return (json.dumps(line) + "\n").encode()
