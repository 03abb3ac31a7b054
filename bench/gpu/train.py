"""python -m bench.gpu train: python -m fastbn.train for so many seconds, its metrics kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from bench.gpu.measure import Sink
from bench.records.conditions import ROOT
from bench.records.runs import ended
from bench.suite.process import words

GRACE = 25  # seconds that a run may take to save
TOY = "--width 4 --limit-train 64 --limit-test 32 --batch-size 24 --threads 1"


def train(
    out: Path,
    depth: int,
    data_dir: str | None,
    epochs: int | None,
    precision: str,
    small: bool,
    seconds: float,
) -> int:
    """Train a run, stopped and saved when the seconds are over, continued by the next call, and return its
    exit code. Leaves train-resnet<depth>.json."""
    sink, folder = Sink(out, f"train-resnet{depth}", depth=depth), out / "runs" / f"resnet{depth}"
    asked = words(depth=depth, out=folder, precision=precision, resume=True, epochs=epochs or None)
    asked += words(dataset="cifar10" if data_dir else "digits", data_dir=data_dir or None)
    asked += TOY.split() if small else []
    process = subprocess.Popen([sys.executable, "-m", "fastbn.train", *asked], cwd=ROOT)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # it saves, and the next call resumes
        try:
            code = process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    if (folder / "summary.json").exists():
        sink.record["config"], sink.record["summary"] = ended(folder)
        del sink.record["config"]["out"]
    if (folder / "metrics.jsonl").exists():
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        sink.rows.extend(map(json.loads, lines))
    sink.record |= {"exit_code": code, "epochs_done": len(sink.rows)}
    if code == 0:
        sink.finish(failures=[])
    elif code == 130:
        sink.leave_out("the epochs that are still to come: the next call goes on with them")
    else:
        sink.finish(failures=[{"name": f"train, depth {depth}", "what": f"exit code {code}"}])
    return 0 if code in (0, 130) else 1
