"""python -m bench.gpu trial: is the instruction count the wall? The rolling kernels against tap by tap, cuDNN
alone and stock's passes.

Bytes are counted, each tensor that must be read or written once, in units of A = one activation:

    forward   fused, scale-shift-ReLU prologue and statistics: 2     the convolution alone: 2
              stock, ReLU + conv + BN: 2 + 2 + 3
    gradient  fused, dy and the ReLU recomputed from y: 4            the convolution alone: 2
              stock, BN' + conv' + ReLU': 5 + 2 + 3

"cold" rotates through sets of tensors three times as large as L2, "warm" stays with one set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.layer import Layer, Tensors, repeated
from bench.gpu.measure import DEVICE, Sink
from bench.oracle import operations
from bench.oracle.errors import relative
from bench.records.rows import quartiles, reason
from bench.suite import clock
from fastbn.engine.triton.tuning import ROLLING, TAPS
from fastbn.machine.devices import free_unused

SHAPES, BATCHES, DTYPES = ((16, 32), (32, 16), (64, 8)), (128, 1024), (torch.bfloat16, torch.float16)
SMALL = ((16, 6), (64, 4)), (2,), (torch.float16,)  # the interpreter's bfloat16 multiplies bit patterns
MOST_SETS, WARM = 48, 3  # sets of tensors; rounds that are not counted


def providers(layer: Layer) -> dict[tuple[str, str], tuple[Any, int]]:
    """Return, by pass and name, what makes the call for a set of tensors, and the activations that it
    moves."""
    fused = {
        (way, by): (lambda t, by=by, make=make: make(by, t), a)
        for way, make, a in (("forward", layer.fused_forward, 2), ("gradient", layer.fused_gradient, 4))
        for by in (ROLLING, TAPS)
    }
    return fused | {
        ("forward", "convolution alone"): (layer.library_forward, 2),
        ("forward", "stock: ReLU, conv, BN"): (layer.stock_forward, 7),
        ("gradient", "convolution alone"): (layer.library_gradient, 2),
        ("gradient", "stock: BN', conv', ReLU'"): (layer.stock_gradient, 10),
    }


def expected(layer: Layer, way: str, t: Tensors) -> Tensor:
    """Return what the fused kernels must give, in float64."""
    scale, shift = (operations.channels(v) for v in (layer.norm.scale, layer.norm.shift))
    weight, n = layer.weight.double(), t.y.double() * scale + shift
    if way == "forward":
        return F.conv2d(n.relu().to(layer.dtype).double(), weight, padding=1)
    c1, c2, c0 = (operations.channels(c) for c in layer.coefficients)
    dy = (t.ds.double() * c1 + t.own.double() * c2 + c0).to(layer.dtype).double()
    return torch.nn.grad.conv2d_input(t.y.shape, weight, dy, padding=1) * (n > 0)


def measure(layer: Layer, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row per provider, cold and warm: seconds per call, bytes and FLOPs per second; or the error
    that forbids them."""
    values = math.prod(layer.case.source)
    a, flops = values * layer.dtype.itemsize, 2 * layer.weight.numel() * values // layer.case.c
    cache = torch.cuda.get_device_properties(DEVICE).L2_cache_size if DEVICE.type == "cuda" else 0
    count = min(MOST_SETS, max(2, -(-3 * cache // (2 * a))))
    sets = [layer.tensors(10 * k) for k in range(count)]
    rows, calls = [], {}
    for (way, name), (make, moved) in providers(layer).items():
        row: dict[str, Any] = {"pass": way, "provider": name}
        try:
            if name in (ROLLING, TAPS):
                row["error"] = relative(make(sets[0])(), expected(layer, way, sets[0]))
                row["tolerance"] = 2 * torch.finfo(layer.dtype).eps
                if not row["error"] < row["tolerance"]:
                    raise ArithmeticError("off by more than its tolerance: not timed")
            ready = {
                state: repeated([make(t) for t in own], state == "cold")
                for state, own in (("cold", sets), ("warm", sets[:1] * count))
            }
        except Exception as error:  # of one provider: the others are measured all the same
            yield row | {"failure": reason(error)}
            continue
        calls |= {(way, name, state): call for state, call in ready.items()}
        rows += [row | {"L2": state, "bytes": moved * a, "flops": flops} for state in ready]
    clock.interleaved(calls, WARM, DEVICE)
    samples = clock.interleaved(calls, rounds, DEVICE, clock=clock.device_seconds)
    for row in rows:
        own = samples[row["pass"], row["provider"], row["L2"]]
        found = quartiles(seconds / count for seconds in own)
        rates = {f"{what}_per_second": row[what] / found["seconds"] for what in ("bytes", "flops")}
        yield row | found | rates


def trial(sink: Sink, small: bool) -> int:
    """Measure every shape, batch and precision, and return the number of failures."""
    shapes, batches, dtypes = SMALL if small else (SHAPES, BATCHES, DTYPES)
    rates = clock.machine_rates(DEVICE, small)
    sink.record["machine"] = rates
    for dtype in dtypes:
        word = str(dtype).removeprefix("torch.")
        name = f"matmul_{'bf16' if dtype == torch.bfloat16 else 'fp16'}_flops_per_second"
        product = rates.get(name, rates["matmul_flops_per_second"])
        for batch in batches:
            for channels, size in shapes:
                head = {"channels": channels, "size": size, "batch": batch, "dtype": word}
                layer = Layer(operations.Case("", batch, size, size, channels, channels), dtype)
                for row in measure(layer, 1 if small else 30):
                    if "bytes_per_second" in row:
                        row["of_copy"] = row["bytes_per_second"] / rates["copy_bytes_per_second"]
                        row["of_matmul"] = row["flops_per_second"] / product
                    sink.add(**head, **row)
                free_unused(DEVICE)
    failures = [row for row in sink.rows if "failure" in row]
    sink.finish(failures=failures)
    return len(failures)
