"""python -m bench.tune: measures what carries convolutions out and writes the tables that the engines ship.

    --engine native   on this CPU: fastbn/engine/algorithms.json, which algorithm for how many channels
    --engine triton   on this GPU: fastbn/engine/configurations.json, how the rolling kernels are cut, and whether kernels begin early
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import torch


def main(arguments: list[str] | None = None) -> int:
    """0: written; 2: no GPU for the Triton engine's, or a wrong argument."""
    parser = argparse.ArgumentParser("python -m bench.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("native", "triton"), default="triton" if torch.cuda.is_available() else "native")
    parser.add_argument("--images", type=int, help="a batch; 64 on a CPU, 128 on a GPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--packed", action="store_true", help="triton: fp16 formed in fp16 where that is faster; it costs precision")
    parser.add_argument("--dry-run", action="store_true", help="print only")
    asked = parser.parse_args(arguments)
    if asked.engine == "native":
        from bench.tune import native
        from fastbn.engine.algorithms import TABLE

        found, target = native.tune(asked.images or 64, asked.rounds), TABLE
    else:
        if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
            print("bench.tune --engine triton measures kernels on a GPU, and torch finds no CUDA device here", file=sys.stderr)
            return 2
        from bench.tune import triton
        from fastbn.engine.configurations import TABLE

        found, target = triton.tune(asked.images or 128, asked.rounds, packed=asked.packed), TABLE
    if not asked.dry_run:
        target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
