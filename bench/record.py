"""python -m bench.record RUN: keeps what a run reached, and under which conditions, as bench/results/run-<name>-<date>.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.step import RESULTS


def record(run: Path) -> Path:
    """The run's settings, summary and epochs in one file."""
    found = {name: json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in ("config", "summary")}
    folder = found["config"].pop("data_dir")  # where this machine keeps its data is nobody's business
    found["summary"]["dataset_why"] = found["summary"]["dataset_why"].replace(folder, "data")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    target = RESULTS / f"run-{run.name}-{found['summary']['date']}.json"
    target.write_text(json.dumps(found | {"epochs": [json.loads(line) for line in lines]}, indent=1) + "\n", encoding="utf-8")
    return target


if __name__ == "__main__":
    for run in sys.argv[1:] or sys.exit(__doc__):
        print(record(Path(run)))
