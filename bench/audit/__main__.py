"""The cost of a Triton kernel on a GPU that need not be there: cross-compiled, disassembled, counted.

    python -m bench.audit [--capability 90] [--family cifar|imagenet] [--dtype bf16] [--only rolling]
                          [--dependent]
    python -m bench.audit --write      bf16 on sm_90 in full, the other capabilities in two lines each,
                                       into docs/kernels.md

The launches are the engine's own, noted on fake tensors as it walks a network forward and backward
(launches.py). Where loops are unrolled the machine code holds each instruction once for each time it runs:
warps × instructions ÷ pixels is then the work, in warp-instructions per pixel; a multiprocessor issues four
per clock. What follows the first atomic is left out of it: it merges the programs' statistics, which only a
few of the programs do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator

from bench.audit.launches import DTYPES, NETWORKS
from bench.audit.table import HEAD, compiled_rows, summary
from bench.records import between
from bench.records.conditions import ROOT

# KiB of shared memory that a program can have: Ampere, Ada, Hopper, Blackwell
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
PAGE = ROOT / "docs" / "kernels.md"
MARKERS = "<!-- the audit's -->", "<!-- the audit's end -->"


def report(capabilities: Iterable[int]) -> Iterator[str]:
    """Yield what docs/kernels.md holds between its markers, by line."""
    yield "On sm_90, CIFAR's, activations and gradients in bf16:\n"
    yield HEAD
    for row in compiled_rows("cifar", "bf16", 90):
        yield row.line()
    yield f"\n- sm_90, bf16, ImageNet's: {summary(compiled_rows('imagenet', 'bf16', 90))} of {SHARED[90]}"
    for capability in capabilities:
        for dtype in ("fp16", "tf32", "fp32"):
            found = summary(compiled_rows("cifar", dtype, capability))
            yield f"- sm_{capability}, {dtype}: {found} of {SHARED[capability]}"


def main() -> None:
    what = "What the Triton engine's kernels cost, read off machine code."
    parser = argparse.ArgumentParser("python -m bench.audit", description=what)
    parser.add_argument("--capability", type=int, default=90, choices=SHARED)
    parser.add_argument("--family", default="cifar", choices=NETWORKS)
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--only", default="", help="kernels whose names have this in them")
    what = "launched to begin early, as kernels/triton/early_launch.py says"
    parser.add_argument("--dependent", action="store_true", help=what)
    parser.add_argument("--write", action="store_true", help="write docs/kernels.md's tables")
    what = "with --write: the others' capabilities"
    parser.add_argument("--elsewhere", type=int, nargs="*", default=tuple(SHARED), help=what)
    asked = parser.parse_args()
    if asked.write:
        lines = []
        for line in report(asked.elsewhere):
            print(line, file=sys.stderr)
            lines.append(line)
        between.write(PAGE, MARKERS, "\n".join(lines))
        return
    print(HEAD)
    rows = []
    which = asked.family, asked.dtype, asked.capability, lambda row: asked.only in row.title
    for row in compiled_rows(*which, dependent=asked.dependent):
        print(row.line(), flush=True)
        rows.append(row)
    print(f"\nsm_{asked.capability}, {asked.dtype}: {summary(rows)}")


if __name__ == "__main__":
    main()
