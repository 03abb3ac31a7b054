"""Records of runs that never were: a preset's line with these accuracies, as python -m bench.record writes
one."""

from __future__ import annotations

import json
import math

from fastbn.experiments.preset import command, run_name
from fastbn.experiments.presets import PRESETS
from fastbn.settings.arguments import parse

IMAGES = 50_000


def line_of(preset, name):
    return next(line for line in PRESETS[preset].lines if line.name == name)


def saved(preset, name, seed=0, **settings):
    """Return the config.json of a run of this line; `settings` over the line's."""
    line = line_of(preset, name)
    start = [] if line.after is None else ["--weights", f"somewhere/{run_name(line.after, seed)}"]
    words = [*start, *command({**line.settings, **settings}), "--seed", str(seed), "--out", "runs/pretended"]
    return json.loads(json.dumps(parse(words).settings(160)))


def body(preset, name, last, seed=0, over=None, gammas=None, **settings):
    """Return a record: `last` the last epoch's test accuracy, a fraction. over: how many of its epochs
    are."""
    config = saved(preset, name, seed, **settings)
    count = 1 if config["train"] == "none" else config["epochs"] if over is None else over
    examples = PRESETS[preset].examples or settings.get("limit_train") or IMAGES
    steps = 0 if config["train"] == "none" else math.ceil(examples / config["batch_size"])
    lines = [
        {"epoch": i, "step": (i + 1) * steps, "test_accuracy": 0.1, "train_accuracy": 0.2}
        for i in range(count)
    ]
    lines[-1]["test_accuracy"] = last
    summary = {
        "test_accuracy": last,
        "device": "a CPU",
        "engine": "native",
        "trained_parameters": 1_120,
        "date": "2026-11-30",
    }
    summary |= {"training_seconds": 60.0, "images_per_second": 1_000.0}
    return {"config": config, "summary": summary, "gammas": gammas or {}, "epochs": lines}


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"run-{name}.json"
    path.write_text(json.dumps(content))
    return path


def write_folder(folder, content, finished):
    """Return the same as the trainer leaves it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(content["config"]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content["epochs"]))
    if finished:
        (folder / "summary.json").write_text(json.dumps(content["summary"]))
    return folder
