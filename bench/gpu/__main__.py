"""python -m bench.gpu STAGE --out DIR: what a visit to a GPU should find out, a stage a process.

    visit         the stages below, each a process, within --minutes; bench/gpu_check.sh starts it
    compile       the kernels of the stages below, by all processors at once
    trial         the fused kernels against tap by tap, cuDNN and stock's passes
    correctness   every kernel and whole networks against float64
    step          a training step by every provider, and the project's bars     --config 866x128,
    866x128-replicas and the like
    train         python -m fastbn.train, its metrics kept
    merge         all of it in bench/results/<device>-<date>.json, and a short table

With TRITON_INTERPRET=1 and --small every stage runs on a CPU, at toy sizes; its times then mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

STAGES = ("visit", "compile", "trial", "correctness", "step", "train", "merge")
NEEDED = ("numpy", "torch", "triton", "safetensors", "tqdm")


def train(
    out: Path,
    depth: int,
    data_dir: str | None,
    epochs: int | None,
    precision: str,
    small: bool,
    seconds: float,
) -> int:
    """A run, stopped and saved when the seconds are over, continued by the next call; its exit code.
    Leaves train-resnet<depth>.json."""
    from bench.gpu.measure import ROOT, Sink

    sink, folder = Sink(out, f"train-resnet{depth}"), out / "runs" / f"resnet{depth}"
    command = [
        sys.executable,
        "-m",
        "fastbn.train",
        "--depth",
        str(depth),
        "--out",
        str(folder),
        "--precision",
        precision,
        "--resume",
    ]
    command += ["--dataset", "cifar10", "--data-dir", data_dir] if data_dir else ["--dataset", "digits"]
    command += ["--epochs", str(epochs)] if epochs else []
    if small:
        command += [
            "--width",
            "4",
            "--limit-train",
            "64",
            "--limit-test",
            "32",
            "--batch-size",
            "24",
            "--threads",
            "1",
        ]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # it saves, and the next call resumes
        try:
            code = process.wait(25)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    for name in ("config.json", "summary.json"):
        if (folder / name).exists():
            sink.record[name.removesuffix(".json")] = json.loads((folder / name).read_text(encoding="utf-8"))
    sink.record.get("config", {}).pop("data_dir", None)  # where a machine keeps its data is nobody's business
    sink.record.get("config", {}).pop("out", None)
    if data_dir and "summary" in sink.record:
        sink.record["summary"]["dataset_why"] = sink.record["summary"]["dataset_why"].replace(
            data_dir, "data"
        )
    if (folder / "metrics.jsonl").exists():
        sink.rows.extend(
            json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        )
    sink.record |= {"depth": depth, "exit_code": code, "epochs_done": len(sink.rows)}
    if code == 0:
        sink.finish(failures=[])
    elif code == 130:
        sink.leave_out("the epochs that are still to come: the next call goes on with them")
    else:
        sink.finish(failures=[{"name": f"train, depth {depth}", "what": f"exit code {code}"}])
    return 0 if code in (0, 130) else 1


def merge(out: Path, results: Path) -> int:
    """One record of every stage in `out`, and a table; the number of failures."""
    from bench.gpu.bars import line
    from bench.gpu.measure import write

    stages: dict[str, dict[str, Any]] = {}
    for path in sorted(out.glob("*.json")):
        if path.stem == "visit":
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if not re.fullmatch(r"correctness-\d+", path.stem):
            stages[path.stem] = record
    if not stages:
        print(f"{out} holds no stage's record: run the stages first", file=sys.stderr)
        return 2
    if "correctness" in stages:  # thousands of rows: what failed and what came nearest to failing says it all
        rows = stages["correctness"].pop("rows")
        near = [row for row in rows if isinstance(row["error"], float) and row["tolerance"]]
        near.sort(key=lambda row: -row["error"] / row["tolerance"])
        stages["correctness"]["nearest_to_their_tolerance"] = near[:20]
    shared = ("device", "driver", "versions", "commit", "date")
    first = next(iter(stages.values()))
    found = {key: first[key] for key in shared if key in first}
    for stage in stages.values():
        for key in shared:
            if stage.get(key) == found.get(key):
                stage.pop(key, None)
    slug = re.sub(r"[^a-z0-9]+", "-", found["device"].lower()).strip("-")
    results.mkdir(parents=True, exist_ok=True)
    write(results / f"{slug}-{found['date']}.json", {**found, "stages": stages})
    failures = [(name, failed) for name, stage in stages.items() for failed in stage.get("failures", [])]
    print(
        f"{found['device']}, driver {found.get('driver', 'none')}, {found['versions']}, commit "
        f"{found['commit']}"
    )
    for name, stage in stages.items():
        done = "finished" if stage["finished"] else "NOT FINISHED"
        print(
            f"{name:20}{done:14}{len(stage.get('failures', [])):4} failures{len(stage['left_out']):4} left "
            "out"
        )
        for row in stage.get("rows", []):
            if "ms_median" in row:
                memory = (
                    f"{row['peak_memory_bytes'] / 1e9:8.2f} GB"
                    if row["peak_memory_bytes"] is not None
                    else ""
                )
                each = f"{row['ms_a_replica']:10.3f} ms a replica" if "ms_a_replica" in row else ""
                print(f"    {row['provider']:34}{row['ms_median']:10.3f} ms{memory}{each}")
            if row.get("L2") == "cold":
                head = f"{row['channels']}/{row['size']}² b{row['batch']} {row['dtype']} {row['pass']}"
                print(
                    f"    {head:34}{row['provider']:30}{row['microseconds_median']:9.1f} "
                    f"µs{row['of_copy']:7.2f} of copy"
                )
        if name.startswith("train"):
            print(
                f"    epochs {stage.get('epochs_done', 'unknown')}, accuracy "
                f"{stage.get('summary', {}).get('test_accuracy', 'not yet')}"
            )
    for stage in stages.values():
        for bar in stage.get("bars", []):
            print(line(bar))
    for name, failed in failures[:20]:
        print(f"FAILED {name}: {failed}")
    return min(len(failures), 1)


def _visit(asked: argparse.Namespace) -> int:
    """The stages asked for, each with what it takes of this command's options."""
    from bench.gpu import visit

    def options(stage: visit.Stage) -> list[str]:
        if stage.module != "bench.gpu":
            return []
        words = ["--out", str(asked.out), *["--small"] * asked.small]
        if stage.name.split("-")[0] in ("correctness", "step"):
            words += ["--resume"] * asked.resume
        if stage.name.startswith("train"):
            words += ["--data-dir", asked.data_dir] if asked.data_dir else []
            words += ["--precision", asked.precision]
            words += ["--epochs", str(asked.epochs)] if asked.epochs else []
        if stage.name == "merge":
            words += ["--results", str(asked.out / "results" if asked.small else asked.results)]
        return words

    stages, minutes = visit.chosen(asked.only, asked.minutes, asked.small)
    return visit.visit(asked.out, stages, minutes, options, asked.resume, asked.pack)


def main(arguments: list[str] | None = None) -> int:
    """0: done and right; 1: something failed; 2: something is missing here, or a wrong argument."""
    parser = argparse.ArgumentParser(
        "python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the stages' records")
    parser.add_argument("--small", action="store_true", help="toy sizes, for a CPU")
    parser.add_argument(
        "--seconds", type=float, default=440, help="a stage's own limit, kept within the process's"
    )
    parser.add_argument("--config", default="866x128", help="step: depth x batch")
    parser.add_argument("--match", default="", help="correctness: only checks whose name contains this")
    parser.add_argument("--jobs", type=int, help="compile, correctness: processes")
    parser.add_argument(
        "--resume", action="store_true", help="correctness, step: go on with an earlier call's"
    )
    parser.add_argument("--part", type=int, help="correctness: one process's share, internal")
    parser.add_argument("--deadline", type=float, help="correctness: of that share, internal")
    parser.add_argument("--depth", type=int, default=14, help="train")
    parser.add_argument("--epochs", type=int, help="train; the recipe's 160 (digits: their own)")
    parser.add_argument("--precision", default="auto", help="train")
    parser.add_argument("--data-dir", help="train: the folder of CIFAR-10; without it the embedded digits")
    parser.add_argument(
        "--minutes", type=float, help="visit: for everything; without it eight for each stage"
    )
    parser.add_argument("--only", default="", help="visit: these stages alone, joined by commas")
    parser.add_argument(
        "--pack", type=Path, help="visit: an archive of all that was found, after every stage"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("bench") / "results", help="merge: where the record goes"
    )
    asked = parser.parse_args(arguments)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"bench.gpu needs {', '.join(NEEDED)}; not installed here: {', '.join(missing)}", file=sys.stderr
        )
        return 2
    if asked.stage == "visit":
        return _visit(asked)
    if asked.stage == "merge":
        return merge(asked.out, asked.results)
    if asked.stage == "train":
        return train(
            asked.out, asked.depth, asked.data_dir, asked.epochs, asked.precision, asked.small, asked.seconds
        )
    import torch

    if not torch.cuda.is_available() and (os.environ.get("TRITON_INTERPRET") != "1" or not asked.small):
        print(
            "torch finds no CUDA device: without one set TRITON_INTERPRET=1 and give --small", file=sys.stderr
        )
        return 2
    if asked.stage == "correctness":
        from bench.gpu import correctness

        jobs = asked.jobs or (min(16, os.cpu_count() or 1) if torch.cuda.is_available() else 1)
        if asked.part is not None:
            correctness.worker(asked.out, asked.small, asked.match, asked.part, jobs, asked.deadline)
            return 0
        return min(
            correctness.correctness(asked.out, asked.small, asked.match, jobs, asked.seconds, asked.resume), 1
        )
    from bench.gpu.measure import CAPABILITY, Sink

    if asked.stage == "compile":
        if not CAPABILITY:
            print("bench.gpu compile: the interpreter has nothing to compile")
            return 0
        from bench.gpu import compile

        return min(compile.compile_all(Sink(asked.out, "compile"), CAPABILITY, asked.jobs), 1)
    if asked.stage == "trial":
        from bench.gpu import trial

        return min(trial.trial(Sink(asked.out, "trial"), asked.small), 1)
    from bench.gpu import step
    from bench.gpu.providers import SETTINGS, SMALL, SMALL_REPLICAS

    if not asked.small and asked.config not in SETTINGS:
        parser.error(f"--config is one of {', '.join(SETTINGS)}; got {asked.config}")
    small = SMALL_REPLICAS if asked.config.endswith("-replicas") else SMALL
    setting = small if asked.small else SETTINGS[asked.config]
    head = {"depth": setting.depth, "batch": setting.batch, "size": setting.size}
    sink = Sink(asked.out, f"step-{setting.name}", asked.resume, **head)
    return min(step.step(sink, setting, asked.small, asked.seconds), 1)


if __name__ == "__main__":
    sys.exit(main())
