"""python -m bench.gpu trial: is the instruction count the wall? The rolling kernels against tap by tap, cuDNN alone and stock's passes.

Bytes are counted, each tensor that must be read or written once, in units of A = one activation:
    forward   fused, scale-shift-ReLU prologue and statistics: 2     the convolution alone: 2     stock, ReLU + conv + BN: 2 + 2 + 3
    gradient  fused, dy and the ReLU told again from y: 4            the convolution alone: 2     stock, BN' + conv' + ReLU': 5 + 2 + 3
"cold" rotates through sets of tensors three times as large as L2, "warm" stays with one set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.measure import DEVICE, Call, Sink, device_seconds, failure, free, import_tests, rates, relative, repeated, spread
from fastbn.engine.configurations import ROLLING, TAPS
from fastbn.engine.operations import Activation, Mask, Path
from fastbn.engine.triton import Triton

import_tests()
import operations  # noqa: E402

SHAPES, BATCHES, DTYPES = ((16, 32), (32, 16), (64, 8)), (128, 1024), (torch.bfloat16, torch.float16)
SMALL = ((16, 6), (64, 4)), (2,), (torch.float16,)  # the interpreter's bfloat16 multiplies bit patterns
MOST_SETS = 48


@dataclasses.dataclass
class Tensors:
    """One set: what a forward and a gradient of one layer read."""

    y: Tensor  # (N, C, H, W) of the layer before, raw
    ds: Tensor  # of this layer's output, masked
    own: Tensor  # this layer's raw output
    z: Tensor  # relu(scale·y + shift), for stock's passes


class Layer:
    """A 3×3 layer of C channels, H = W = size, and what carries it out."""

    def __init__(self, channels: int, size: int, batch: int, dtype: torch.dtype):
        self.dtype, device = dtype, str(DEVICE)
        self.case = operations.Case("", batch, size, size, channels, channels)
        self.weight = self.case.weight().to(DEVICE, dtype)
        self.library = self.weight.contiguous(memory_format=torch.channels_last)
        self.norm, self.target = operations.norm(channels, 2, device=device), operations.target(channels, device=device)
        self.coefficients = tuple(operations.draw(3, channels, seed=9, device=device))
        self.affine = operations.affine(channels, device)
        self.bytes = batch * channels * size * size * dtype.itemsize  # A
        self.flops = 2 * 9 * channels**2 * batch * size * size
        self.saved = [t.float() for t in self.norm.vectors[:2]]

    def tensors(self, seed: int) -> Tensors:
        y, ds, own = (operations.activation(*self.case.source, seed=seed + k, dtype=self.dtype, device=str(DEVICE)) for k in range(3))
        return Tensors(y, ds, own, F.relu(y))

    def fused_forward(self, by: str, t: Tensors) -> Call:
        engine, conv = Triton(lambda conv: by), self.case.conv()
        packed, read = engine.pack(conv, self.weight, self.dtype), Activation((t.y,), (self.norm,), None, True)
        return lambda: engine.convolve(conv, packed, read, False, False, self.target)[0]

    def fused_gradient(self, by: str, t: Tensors) -> Call:
        engine, conv = Triton(lambda conv: by), self.case.conv()
        path = Path(conv, engine.pack(conv, self.weight, self.dtype), t.ds, t.own, self.coefficients)
        mask = Mask(True, None, (t.y,), (self.norm,), (self.affine,))
        return lambda: engine.gradient([path], [], mask, self.case.source)[0]

    def library_forward(self, t: Tensors) -> Call:
        return lambda: F.conv2d(t.z, self.library, padding=1)

    def library_gradient(self, t: Tensors) -> Call:
        one, wanted = [1, 1], (True, False, False)
        return lambda: torch.ops.aten.convolution_backward(t.ds, t.z, self.library, None, one, one, one, False, [0, 0], 1, wanted)[0]

    def stock_forward(self, t: Tensors) -> Call:
        m = self.target.module

        def run() -> Tensor:
            y = F.conv2d(F.relu(t.y), self.library, padding=1)
            return F.batch_norm(y, m.running_mean, m.running_var, m.weight, m.bias, True)

        return run

    def stock_gradient(self, t: Tensors) -> Call:
        """PyTorch's own BatchNorm kernels: cuDNN's want a reserve that only its forward hands out."""
        m, aten = self.target.module, torch.ops.aten

        def run() -> Tensor:
            moving = m.running_mean, m.running_var
            dy = aten.native_batch_norm_backward(t.ds, t.own, m.weight, *moving, *self.saved, True, m.eps, [True, True, True])[0]
            one = [1, 1]
            dz = aten.convolution_backward(dy, t.z, self.library, None, one, one, one, False, [0, 0], 1, (True, False, False))[0]
            return aten.threshold_backward(dz, t.z, 0)

        return run

    def providers(self) -> dict[tuple[str, str], tuple[Any, int]]:
        """By pass and name: what makes the call for a set of tensors, and the activations that it moves."""
        fused = {
            (way, by): (lambda t, by=by, make=make: make(by, t), a)
            for way, make, a in (("forward", self.fused_forward, 2), ("gradient", self.fused_gradient, 4))
            for by in (ROLLING, TAPS)
        }
        return fused | {
            ("forward", "convolution alone"): (self.library_forward, 2),
            ("forward", "stock: ReLU, conv, BN"): (self.stock_forward, 7),
            ("gradient", "convolution alone"): (self.library_gradient, 2),
            ("gradient", "stock: BN', conv', ReLU'"): (self.stock_gradient, 10),
        }


def expected(layer: Layer, way: str, t: Tensors) -> Tensor:
    """What the fused kernels must give, in float64."""
    scale, shift = (operations.channels(v) for v in (layer.norm.scale, layer.norm.shift))
    weight, n = layer.weight.double(), t.y.double() * scale + shift
    if way == "forward":
        return F.conv2d(n.relu().to(layer.dtype).double(), weight, padding=1)
    c1, c2, c0 = (operations.channels(c) for c in layer.coefficients)
    dy = (t.ds.double() * c1 + t.own.double() * c2 + c0).to(layer.dtype).double()
    return torch.nn.grad.conv2d_input(t.y.shape, weight, dy, padding=1) * (n > 0)


def measure(layer: Layer, rounds: int) -> Iterator[dict[str, Any]]:
    """A row a provider, cold and warm: microseconds a call, bytes and FLOPs a second; or the error that forbids them."""
    cache = torch.cuda.get_device_properties(DEVICE).L2_cache_size if DEVICE.type == "cuda" else 0
    count = min(MOST_SETS, max(2, -(-3 * cache // (2 * layer.bytes))))
    sets = [layer.tensors(10 * k) for k in range(count)]
    rows, calls = [], []
    for (way, name), (make, moved) in layer.providers().items():
        row: dict[str, Any] = {"pass": way, "provider": name}
        try:
            if name in (ROLLING, TAPS):
                row["error"] = relative(make(sets[0])(), expected(layer, way, sets[0]))
                row["tolerance"] = 2 * torch.finfo(layer.dtype).eps
                if not row["error"] < row["tolerance"]:
                    raise ArithmeticError("off by more than its tolerance: not timed")
            ready = [(s, repeated([make(t) for t in own], s == "cold")) for s, own in (("cold", sets), ("warm", sets[:1] * count))]
        except Exception as error:  # of one provider: the others are measured all the same
            yield row | {"failure": failure(error)}
            continue
        rows += [row | {"L2": state, "bytes": moved * layer.bytes, "flops": layer.flops} for state, _ in ready]
        calls += [call for _, call in ready]
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 3):
        for own, call in zip(seconds, calls, strict=True):
            taken = device_seconds(call) / count
            if turn >= 3:
                own.append(taken)
    for row, own in zip(rows, seconds, strict=True):
        found = spread(own, 1e-6)
        each = found["median"] * 1e-6
        yield row | {f"microseconds_{key}" if key != "rounds" else key: value for key, value in found.items()} | {
            "bytes_per_second": row["bytes"] / each, "flops_per_second": row["flops"] / each,
        }  # fmt: skip


def trial(sink: Sink, small: bool) -> int:
    """Every shape, batch and precision; the number of failures."""
    shapes, batches, dtypes = SMALL if small else (SHAPES, BATCHES, DTYPES)
    for dtype in dtypes:
        own = rates(small, dtype)
        sink.record.setdefault("rates", {})[str(dtype).removeprefix("torch.")] = own
        for batch in batches:
            for channels, size in shapes:
                head = {"channels": channels, "size": size, "batch": batch, "dtype": str(dtype).removeprefix("torch.")}
                for row in measure(Layer(channels, size, batch, dtype), 1 if small else 30):
                    if "bytes_per_second" in row:
                        row["of_copy"] = row["bytes_per_second"] / own["copy_bytes_per_second"]
                        row["of_matmul"] = row["flops_per_second"] / own["matmul_flops"]
                    sink.add(**head, **row)
                free()
    failures = [row for row in sink.rows if "failure" in row]
    sink.finish(failures=failures)
    return len(failures)
