"""python -m bench.gpu merge: every stage's record in one file of bench/results/, and a short table."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu.bars import line
from bench.records.conditions import in_words, write
from bench.records.rows import FORMAT, Row, slug

NEAREST = 20  # checks that are kept: those that came nearest to failing
Stages = dict[str, dict[str, Any]]


def merge(out: Path, results: Path) -> int:
    """Write one record of every stage in `out`, and print a table. Returns 1 where a stage has a failure, 2
    where there is no stage.

    The record is a benchmark's own: its rows are those of steps and kernels, the rest lies under `stages`."""
    paths = [path for path in sorted(out.glob("*.json")) if path.stem != "visit"]
    paths = [path for path in paths if not re.fullmatch(r"correctness-\d+", path.stem)]
    stages: Stages = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    if not stages:
        print(f"{out} holds no stage's record: run the stages first", file=sys.stderr)
        return 2
    if "correctness" in stages:  # thousands of rows: what failed and what came nearest to failing says it all
        rows = stages["correctness"].pop("rows")
        near = [row for row in rows if isinstance(row["error"], float) and row["tolerance"]]
        near.sort(key=lambda row: -row["error"] / row["tolerance"])
        stages["correctness"]["nearest_to_their_tolerance"] = near[:NEAREST]
    for text in _table(stages):
        print(text)
    found = next(iter(stages.values()))["conditions"]
    rates: dict[str, float] = {}
    steps = []
    for name, stage in stages.items():
        rates |= stage.pop("machine")
        if stage["conditions"] == found:
            del stage["conditions"]
        if name.startswith(("step", "trial")):
            steps += [row for row in stage.pop("rows") if "skipped" not in row.get("more", {})]
    results.mkdir(parents=True, exist_ok=True)
    body = {"format": FORMAT, "conditions": found, "machine": rates, "rows": steps, "stages": stages}
    write(results / f"{slug(found['device'])}-{found['date']}.json", body)
    return int(any(stage.get("failures") for stage in stages.values()))


def _table(stages: Stages) -> Iterator[str]:
    found = next(iter(stages.values()))["conditions"]
    yield f"{', '.join(in_words(found))}, driver {found.get('driver', 'none')}"
    for name, stage in stages.items():
        done = "finished" if stage["finished"] else "NOT FINISHED"
        counts = f"{len(stage.get('failures', [])):4} failures{len(stage['left_out']):4} left out"
        yield f"{name:20}{done:14}{counts}"
        timed = [Row(**row) for row in stage.get("rows", []) if "seconds" in row and "provider" in row]
        yield from (_step(row) for row in timed if row.level == "step")
        cold = (row for row in timed if row.level == "kernel" and row.case.endswith("cold"))
        yield from (_kernel(row, stage["machine"]) for row in cold)
        if name.startswith("train"):
            accuracy = stage.get("summary", {}).get("test_accuracy", "not yet")
            yield f"    epochs {stage.get('epochs_done', 'unknown')}, accuracy {accuracy}"
    for stage in stages.values():
        yield from map(line, stage.get("bars", []))
    failures = [(name, failed) for name, stage in stages.items() for failed in stage.get("failures", [])]
    for name, failed in failures[:20]:
        yield f"FAILED {name}: {failed}"


def _step(row: Row) -> str:
    said = f"    {row.provider:40}{1e3 * (row.seconds or 0.0):10.3f} ms"
    said += f"{row.peak_memory_bytes / 1e9:8.2f} GB" if row.peak_memory_bytes is not None else ""
    part = (row.more or {}).get("seconds_per_replica")
    return said + (f"{1e3 * part:10.3f} ms per replica" if part else "")


def _kernel(row: Row, machine: dict[str, float]) -> str:
    seconds = row.seconds or 1.0
    share = (row.moved_bytes or 0) / seconds / machine["copy_bytes_per_second"]
    return f"    {row.case:60}{row.provider:32}{1e6 * seconds:9.1f} µs{share:7.2f} of copy"
