"""python -m bench.step --depth 32: a whole training step of stock PyTorch and of fastbn, in turn, in one process.

Prints a table and writes bench/results/step-resnet<depth>-b<batch>-<date>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bench.record import RESULTS, conditions
from fastbn import FastBNOnlyResNet, freeze
from fastbn.engine import fused_forward

Provider = tuple[Callable[[torch.Tensor], torch.Tensor], nn.Module, torch.memory_format]


def providers(depth: int, family: str | None, engine: str, compiled: bool) -> dict[str, Callable[[], Provider]]:
    """By name: what makes a network, the module that owns its parameters, and the memory format of its images."""

    def stock(train: str, layout: torch.memory_format, compiled: bool = False) -> Provider:
        model = freeze(FastBNOnlyResNet(depth, family=family, engine="stock"), train)
        model = model.to(memory_format=layout)  # type: ignore[call-overload]
        return torch.compile(model, dynamic=False) if compiled else model, model, layout

    def fused() -> Provider:
        model = FastBNOnlyResNet(depth, family=family, engine=engine)
        return model, model, torch.channels_last

    found: dict[str, Callable[[], Provider]] = {}
    for train, title in (("all", "stock, all"), ("bn", "stock, BN only")):
        found[title] = lambda train=train: stock(train, torch.contiguous_format)  # type: ignore[misc]
        found[f"{title}, channels-last"] = lambda train=train: stock(train, torch.channels_last)  # type: ignore[misc]
        if compiled:
            found[f"{title}, channels-last, compiled"] = lambda train=train: stock(train, torch.channels_last, True)  # type: ignore[misc]
    return found | {f"fastbn {engine}": fused}


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


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the frozen weights as fastbn's engine packed them, beside the parameters themselves; 0 for a stock model."""
    fused = fused_forward(model)
    packs = [pack for by_weight in fused._packs.values() for _, _, pack in by_weight.values()] if fused else []
    tensors = [t for pack in packs for t in ([pack] if isinstance(pack, torch.Tensor) else [pack.forward, pack.backward])]
    return sum(t.untyped_storage().nbytes() for t in tensors)


def step_of(provider: Provider, batch: int, size: int) -> tuple[Callable[[], None], Callable[[], torch.Tensor]]:
    """A whole training step, and its forward alone."""
    forward, model, layout = provider
    torch.manual_seed(0)
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (batch,))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(x), labels).backward()
        optimizer.step()

    return step, lambda: forward(x)


def measure(made: dict[str, Callable[[], Provider]], batch: int, size: int, rounds: int) -> list[dict[str, Any]]:
    """One row a provider: seconds a step, median and quartiles over rounds taken in turn, and bytes saved for the backward."""
    rows, steps = [], []
    for name, make in made.items():
        provider = make()
        step, forward = step_of(provider, batch, size)
        start = time.perf_counter()
        step()  # compiles, packs, allocates
        first = time.perf_counter() - start
        saved = saved_bytes(forward, packed_bytes(provider[1]))
        rows.append({"provider": name, "first_step_seconds": first, "saved_bytes": saved, "seconds": []})
        steps.append(step)
    for _ in range(rounds):
        for row, step in zip(rows, steps, strict=True):
            start = time.perf_counter()
            step()
            row["seconds"].append(time.perf_counter() - start)
    return rows


def matmul_rate() -> float:
    """FLOP/s of a large float32 matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.step", description=__doc__)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engine", default="native")
    parser.add_argument("--family", default=None)
    parser.add_argument("--size", type=int, default=32, help="of the images")
    parser.add_argument("--compiled", action="store_true", help="stock under torch.compile too")
    asked = parser.parse_args()
    made = providers(asked.depth, asked.family, asked.engine, asked.compiled)
    rows = measure(made, asked.batch_size, asked.size, asked.rounds)
    sgemm = matmul_rate()
    print(f"matrix product of this machine, float32: {sgemm / 1e9:.0f} GFLOP/s")
    best = min(statistics.median(row["seconds"]) for row in rows if row["provider"].startswith("stock, BN"))
    print(f"{'':42}{'ms a step':>12}{'quartiles':>20}{'/ best stock BN only':>22}{'saved MB':>10}")
    for row in rows:
        low, middle, high = statistics.quantiles(row["seconds"], n=4)
        spread = f"{1e3 * low:.0f} … {1e3 * high:.0f}"
        print(f"{row['provider']:42}{1e3 * middle:12.1f}{spread:>20}{middle / best:22.2f}{row['saved_bytes'] / 1e6:10.1f}")
    found = conditions()
    record = {"depth": asked.depth, "batch_size": asked.batch_size, "size": asked.size, "precision": "fp32", **found}
    record |= {"matmul_flops": sgemm, "rows": rows}
    target = RESULTS / f"step-resnet{asked.depth}-{asked.size}px-b{asked.batch_size}-{asked.engine}-{found['date']}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
