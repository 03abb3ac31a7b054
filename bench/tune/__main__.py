"""python -m bench.tune: measures the kernels that run convolutions, and writes the engines' tables.

--engine native   on this CPU: fastbn/engine/native/algorithms.json, which algorithm for which shape; of its
                  instruction set alone
--engine triton   on this GPU: fastbn/engine/triton/tuning.json, which kernel runs which convolution, how they
                  are cut, and whether they begin early; written after every row
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch

from bench.records.conditions import write


def main(arguments: list[str] | None = None) -> int:
    """Return 0: written; 2: no GPU for the Triton engine's, or a wrong argument."""
    parser = argparse.ArgumentParser(
        "python -m bench.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    engine = "triton" if torch.cuda.is_available() else "native"
    parser.add_argument("--engine", choices=("native", "triton"), default=engine)
    parser.add_argument("--images", type=int, help="a batch; 64 on a CPU, 128 on a GPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dry-run", action="store_true", help="print only")
    parts = ("rolling", "convolutions", "launches")
    parser.add_argument("--only", choices=parts, help="triton: one part of the table")
    what = "triton: begin no row after these"
    parser.add_argument("--seconds", type=float, default=float("inf"), help=what)
    asked = parser.parse_args(arguments)
    if asked.engine == "native":
        from bench.tune import native
        from fastbn.engine.native.algorithms import TABLE

        _write(TABLE, native.tune(asked.images or 64, asked.rounds), asked.dry_run)
        return 0
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        what = "bench.tune --engine triton measures kernels on a GPU"
        print(f"{what}, and torch finds no CUDA device here", file=sys.stderr)
        return 2
    from bench.tune import triton
    from fastbn.engine.triton import tuning_table

    parts = (asked.only,) if asked.only else triton.PARTS
    for found in triton.tune(asked.images or 128, asked.rounds, parts, asked.seconds):
        _write(tuning_table.TABLE, found, asked.dry_run)
        tuning_table.shipped.cache_clear()
    return 0


def _write(table: Path, found: dict[str, Any], dry_run: bool) -> None:
    if not dry_run:
        write(table, found)


if __name__ == "__main__":
    sys.exit(main())
