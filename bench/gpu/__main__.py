"""python -m bench.gpu STAGE --out DIR: what a visit to a GPU should find out, a stage a process.

    visit         the stages below, each a process, within --minutes; bench/gpu_check.sh starts it
    compile       the kernels of the stages below, by all processors at once
    trial         the fused kernels against tap by tap, cuDNN and stock's passes
    correctness   every kernel and whole networks against float64
    step          a training step by every provider, and the project's bars
                  --config 866x128, 866x128-replicas and the like
    train         python -m fastbn.train, its metrics kept
    merge         all of it in bench/results/<device>-<date>.json, and a short table

With TRITON_INTERPRET=1 and --small every stage runs on a CPU, at toy sizes; its times then mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import operator
import os
import sys
from pathlib import Path

STAGES = ("visit", "compile", "trial", "correctness", "step", "train", "merge")
NEEDED = ("numpy", "torch", "triton", "safetensors", "tqdm")
RESULTS = Path("bench") / "results"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("stage", choices=STAGES)
    add("--out", type=Path, default=Path("gpu-check"), help="folder of the stages' records")
    add("--small", action="store_true", help="toy sizes, for a CPU")
    add("--seconds", type=float, default=440, help="a stage's own limit, kept within the process's")
    add("--config", default="866x128", help="step: depth x batch")
    add("--match", default="", help="correctness: only checks whose name contains this")
    add("--jobs", type=int, help="compile, correctness: processes")
    add("--resume", action="store_true", help="correctness, step: go on with an earlier call's")
    add("--part", type=int, help="correctness: one process's share, internal")
    add("--deadline", type=float, help="correctness: of that share, internal")
    add("--depth", type=int, default=14, help="train")
    add("--epochs", type=int, help="train; the recipe's 160 (digits: their own)")
    add("--precision", default="auto", help="train")
    add("--data-dir", help="train: the folder of CIFAR-10; without it the embedded digits")
    add("--minutes", type=float, help="visit: for everything; without it eight for each stage")
    add("--only", default="", help="visit: these stages alone, joined by commas")
    add("--pack", type=Path, help="visit: an archive of all that was found, after every stage")
    add("--results", type=Path, default=RESULTS, help="merge: where the record goes")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Return 0: done and right; 1: something failed; 2: something is missing here, or a wrong argument."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    missing = ", ".join(name for name in NEEDED if importlib.util.find_spec(name) is None)
    if missing:
        print(f"bench.gpu needs {', '.join(NEEDED)}; not installed here: {missing}", file=sys.stderr)
        return 2
    if asked.stage == "visit":
        from bench.gpu import visit

        stages, minutes = visit.chosen(asked.only, asked.minutes, asked.small)
        words = operator.methodcaller("words", asked)
        return visit.visit(asked.out, stages, minutes, words, asked.resume, asked.pack)
    if asked.stage == "merge":
        from bench.gpu.merge import merge

        return merge(asked.out, asked.results)
    if asked.stage == "train":
        from bench.gpu.train import train

        how = asked.depth, asked.data_dir, asked.epochs, asked.precision, asked.small, asked.seconds
        return train(asked.out, *how)
    import torch

    cuda = torch.cuda.is_available()
    if not cuda and (os.environ.get("TRITON_INTERPRET") != "1" or not asked.small):
        remedy = "without one set TRITON_INTERPRET=1 and give --small"
        print(f"torch finds no CUDA device: {remedy}", file=sys.stderr)
        return 2
    if asked.stage == "correctness":
        from bench.gpu import correctness

        jobs = asked.jobs or (min(16, os.cpu_count() or 1) if cuda else 1)
        share = asked.out, asked.small, asked.match
        if asked.part is not None:
            correctness.worker(*share, asked.part, jobs, asked.deadline)
            return 0
        return min(correctness.correctness(*share, jobs, asked.seconds, asked.resume), 1)
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

    if not asked.small and asked.config not in step.SETTINGS:
        parser.error(f"--config is one of {', '.join(step.SETTINGS)}; got {asked.config}")
    small = step.SMALL_REPLICAS if asked.config.endswith("-replicas") else step.SMALL
    setting = small if asked.small else step.SETTINGS[asked.config]
    sink = Sink(asked.out, f"step-{setting.name}", asked.resume)
    return min(step.step(sink, setting, asked.small, asked.seconds), 1)


if __name__ == "__main__":
    sys.exit(main())
