"""python -m bench.step --depth 32: a whole training step of stock PyTorch and of fastbn, in turn, in one process.

Prints a table and writes bench/results/step-resnet<depth>-b<batch>-<date>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastbn import FastBNOnlyResNet, freeze
from fastbn.training import machine

RESULTS = Path(__file__).parent / "results"


def providers(depth: int, engine: str) -> dict[str, tuple[nn.Module, torch.memory_format]]:
    """By name: a network and the memory format of its images. Every one has the same weights."""

    def stock(train: str, layout: torch.memory_format) -> tuple[nn.Module, torch.memory_format]:
        model = freeze(FastBNOnlyResNet(depth, engine="stock"), train)
        return model.to(memory_format=layout), layout  # type: ignore[call-overload]

    return {
        "stock, all": stock("all", torch.contiguous_format),
        "stock, all, channels-last": stock("all", torch.channels_last),
        "stock, BN only": stock("bn", torch.contiguous_format),
        "stock, BN only, channels-last": stock("bn", torch.channels_last),
        f"fastbn {engine}": (FastBNOnlyResNet(depth, engine=engine), torch.channels_last),
    }


def saved_bytes(forward: Callable[[], torch.Tensor], own: int) -> int:
    """Bytes that autograd keeps for the backward, each storage once, parameters aside; `own` is what the model holds besides."""
    storages: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if not isinstance(t, nn.Parameter):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    return sum(storages.values()) + own


def measure(depth: int, batch: int, rounds: int, engine: str) -> list[dict[str, Any]]:
    """One row a provider: seconds a step, median and quartiles over rounds taken in turn, and bytes saved for the backward."""
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    rows, steps = [], []
    for name, (model, layout) in providers(depth, engine).items():
        x = images.contiguous(memory_format=layout)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9)

        def step(model: nn.Module = model, x: torch.Tensor = x, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()

        step()  # compiles, packs, allocates
        packed = sum(p.numel() * 4 for p in model.parameters() if not p.requires_grad) if name.startswith("fastbn") else 0
        rows.append({"provider": name, "saved_bytes": saved_bytes(lambda model=model, x=x: model(x), packed), "seconds": []})  # type: ignore[misc]
        steps.append(step)
    for _ in range(rounds):
        for row, step in zip(rows, steps, strict=True):
            start = time.perf_counter()
            step()
            row["seconds"].append(time.perf_counter() - start)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.step", description=__doc__)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engine", default="reference")
    asked = parser.parse_args()
    rows = measure(asked.depth, asked.batch_size, asked.rounds, asked.engine)
    best = min(statistics.median(row["seconds"]) for row in rows if row["provider"].startswith("stock, BN"))
    print(f"{'':32}{'ms a step':>12}{'quartiles':>20}{'/ best stock BN only':>22}{'saved MB':>10}")
    for row in rows:
        low, middle, high = statistics.quantiles(row["seconds"], n=4)
        spread = f"{1e3 * low:.0f} … {1e3 * high:.0f}"
        print(f"{row['provider']:32}{1e3 * middle:12.1f}{spread:>20}{middle / best:22.2f}{row['saved_bytes'] / 1e6:10.1f}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS).stdout.strip()
    date = time.strftime("%Y-%m-%d")
    conditions = {"device": machine.describe(torch.device("cpu")), "versions": machine.versions(), "commit": commit, "date": date}
    record = {"depth": asked.depth, "batch_size": asked.batch_size, "precision": "fp32", **conditions, "rows": rows}
    target = RESULTS / f"step-resnet{asked.depth}-b{asked.batch_size}-{date}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
