"""Keep runs in the repository: finished ones as records and networks, those under way as folders to
continue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.records import between
from bench.records.conditions import RESULTS, ROOT
from bench.records.networks import MARKERS, table
from bench.records.runs import record, relative
from fastbn.errors import UsageError
from fastbn.experiments.records import Run, folder_of
from fastbn.training import checked_file
from fastbn.training.checkpoint import CHECKPOINT

UNDER_WAY, PRETRAINED = ROOT / "reproduction", ROOT / "pretrained"
LARGEST = 100_000  # bytes of a checkpoint that is kept


def keep(
    places: Sequence[Path],
    results: Path = RESULTS,
    under_way: Path = UNDER_WAY,
    pretrained: Path = PRETRAINED,
) -> Iterator[str]:
    """Keep every run below `places`; yields a line for each. Writes the networks' table into the README of
    `pretrained`, where there is one. Raises UsageError for a place without a run, or a README without
    markers."""
    for place in places:
        found = sorted(path.parent for path in place.rglob("config.json"))
        if not found:
            remedy = "give a folder that the trainer wrote"
            raise UsageError(f"{place} holds no run: no config.json in it or below; {remedy}")
        for path in found:
            inside = path.relative_to(place) if path != place else Path(path.name)
            run, kept = folder_of(path), under_way / inside
            if not run.finished:
                yield _copy(run, kept, str(Path(UNDER_WAY.name) / inside))
                continue
            name = "-".join(inside.parts)
            yield f"{record(path, name, results)}: {100 * run.epochs[-1]['test_accuracy']:.2f}%"
            if run.config.train == "bn" and (target := network(path, pretrained / name)):
                yield f"{target}: the network"
            if kept.resolve() != path.resolve() and (copied := _at(kept)) and _same(copied, run):
                shutil.rmtree(kept)  # the copy of it that was under way
    if (readme := pretrained / "README.md").exists():
        between.write(readme, MARKERS, table(pretrained, results))


def network(run: Path, target: Path) -> Path | None:
    """Copy a finished run's network without its optimizer's state; None where it is too large to be kept."""
    tensors, header = checked_file.read(run / CHECKPOINT)
    tensors = {name: value for name, value in tensors.items() if not name.startswith("optimizer.")}
    if sum(value.nbytes for value in tensors.values()) > LARGEST:
        return None
    target.mkdir(parents=True, exist_ok=True)
    header = {name: value for name, value in header.items() if name != "position"}
    _write(target / CHECKPOINT, tensors, _without_paths(header, f"runs/{target.name}"))
    return target


def _at(folder: Path) -> Run | None:
    return folder_of(folder) if (folder / "config.json").exists() else None


def _same(one: Run, other: Run) -> bool:
    return (one.identity, one.config.seed) == (other.identity, other.config.seed)


def _copy(run: Run, target: Path, out: str) -> str:
    """Copy a run that is under way.

    The checkpoint comes first: all its epochs are then among the metrics that are read after it.
    """
    at = f"epoch {len(run.epochs)} of {run.config.epochs}"
    if run.place.resolve() == target.resolve():
        return f"{target}: {at}, left as it is"
    there = _at(target)
    if there and not _same(there, run):
        raise UsageError(f"{target} holds a run with other settings than {run.place}; move one of them away")
    if there and len(there.epochs) > len(run.epochs):
        return f"{target}: at epoch {len(there.epochs)}, further than {run.place} ({at}), left as it is"
    checkpoint = run.place / CHECKPOINT
    if not checkpoint.exists():
        return f"{target}: {at}, nothing saved yet, not kept"
    if checkpoint.stat().st_size > LARGEST:
        size = f"{checkpoint.stat().st_size:,} bytes is more than the {LARGEST:,} that are kept"
        return f"{target}: {at}, its checkpoint of {size}; carry it by other means"
    target.mkdir(parents=True, exist_ok=True)
    tensors, header = checked_file.read(checkpoint)
    _write(target / CHECKPOINT, tensors, _without_paths(header, out))
    config = json.loads((run.place / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(relative(config, out), indent=2, ensure_ascii=False) + "\n"
    (target / "config.json").write_text(text, encoding="utf-8")
    lines = (run.place / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]  # the last may be being written
    (target / "metrics.jsonl").write_text("".join(whole), encoding="utf-8")
    return f"{target}: {at}, kept"


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write a checkpoint, but where it lies already: the bytes of a safetensors file differ from one
    writing to the next."""
    if path.exists():
        there, told = checked_file.read(path)
        same = told == header and there.keys() == tensors.keys()
        if same and all(there[name].equal(tensors[name]) for name in tensors):
            return
    checked_file.write(path, tensors, header)


def _without_paths(header: dict[str, Any], out: str) -> dict[str, Any]:
    """Return a checkpoint's header with no absolute path; a file of weights is known by its SHA-256."""
    source = dict(header["source"])
    if source.get("file"):
        source["file"] = Path(source["file"]).name
    return header | {"source": source, "config": relative(header["config"], out)}
