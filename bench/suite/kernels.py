"""The kernel level: each operation of an identity block, fused, and the sequence of stock operations that it
replaces.

    conv2   z = relu(scale·y + shift) as it is loaded, the convolution, its output's statistics
            stock: BatchNorm, ReLU, conv
    conv1   the same with a residual added; z and its mask are written
            stock: the same with an addition
    ∇conv2  the input gradient, masked by what y says, and dγ, dβ
            stock: gradients of conv, ReLU, BatchNorm (which makes dy too)
    ∇conv1  the same with the residual's gradient added, masked by the saved bits
            stock: the same with an addition
    form    z of the last addition, which no convolution reads
            stock: BatchNorm, addition, ReLU

"convolution alone" is the library's own, of what is formed already: what it could not be done faster than.
Both sides do as many statistics, normalisations and products; only at which end of the operation the
statistics lie differs. Warm, what the model counts as moved may come from a cache: there the share of
roofline can exceed 1."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.oracle.errors import relative
from bench.records.rows import Row, reason
from bench.suite import clock, costs
from bench.suite.cases import STORED, Blocks
from bench.suite.gate import summing
from fastbn.engine.interface import BackpropPath, Engine, LazyActivation, Mask, NormTarget, NormVectors
from fastbn.engine.select import choose
from fastbn.graph.activations import RELU
from fastbn.graph.regions import Conv, Join, Region
from fastbn.planning import traffic
from fastbn.planning.cost import Cost, total

OPERATIONS = ("conv2", "conv1", "∇conv2", "∇conv1", "form")
# before each clocked call: a buffer larger than any cache is written; or the very call is made
CACHES = ("cold", "warm")
FLUSH = {"cpu": 1 << 27, "cuda": 1 << 28}  # bytes of that buffer
EPSILON = 1e-5  # of BatchNorm
GEOMETRY = [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]  # of the input gradient
STOCK, ALONE = "stock channels-last", "convolution alone"

Results = Callable[[], list[Tensor]]  # a forward's: [output]; a gradient's: [ds, dγ, dβ, dy]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The tensors of an operation, the same for both sides. They are flip-free: β is 6 or −6 by channel, γ is
    at most 1."""

    y: Tensor  # (N, C, H, W) in channels-last memory, like the three that follow
    residual: Tensor
    dy: Tensor
    added: Tensor
    weight: Tensor  # (C, C, 3, 3)
    gamma: Tensor
    beta: Tensor

    def double(self) -> Inputs:
        return Inputs(*(getattr(self, field.name).double() for field in dataclasses.fields(self)))


def inputs(blocks: Blocks, device: torch.device) -> Inputs:
    n, c, size, dtype = blocks.batch_size, blocks.channels, blocks.size, STORED[blocks.precision]
    draw = torch.Generator().manual_seed(0)
    drawn = (torch.randn(n, size, size, c, generator=draw) for _ in range(4))
    y, residual, dy, added = (t.to(device, dtype).permute(0, 3, 1, 2) for t in drawn)
    weight = (torch.randn(c, c, 3, 3, generator=draw) / (9 * c) ** 0.5).to(device, dtype)
    gamma, beta = torch.rand(c, generator=draw) / 2 + 0.5, torch.where(torch.arange(c) % 3 > 0, 6.0, -6.0)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return Inputs(y, residual, dy, added, weight, gamma.to(device), beta.to(device))


def region(channels: int) -> Region:
    """Return two identity blocks in a chain: value 2 is handed from the first to the second, value 4
    outside."""

    def conv(name: str, source: int) -> Conv:
        return Conv(name, f"{name}_bn", source, channels, channels, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0)

    convs = [conv(name, source) for source, name in enumerate(("0.a", "0.b", "1.a", "1.b"))]
    joins = [Join(i + 1, (own,), i - 1 if i % 2 else None, RELU) for i, own in enumerate(convs)]
    return Region(1, tuple(joins), (4,))


def cost(blocks: Blocks, operation: str, provider: str) -> Cost:
    """Return what one operation costs by the traffic model."""
    size, shape = STORED[blocks.precision].itemsize, (blocks.batch_size, blocks.channels, *[blocks.size] * 2)
    case = traffic.TrafficCase(region(blocks.channels), (shape,), size, size)
    fused = provider.startswith("fastbn")
    plan = traffic.fused(case) if fused else traffic.stock(case)
    names = {
        "conv2": (["1.b"], ["1.a_bn", "1.a_bn relu", "1.b"]),
        "conv1": (["1.a"], ["0.b_bn", "0.b_bn add", "0.b_bn relu", "1.a"]),
        "∇conv2": (["1.b"], ["1.b", "1.a_bn relu", "1.a_bn"]),
        "∇conv1": (["1.a"], ["1.a", "0.b_bn accumulate", "0.b_bn relu", "0.b_bn"]),
        "form": (["1.b_bn form"], ["1.b_bn", "1.b_bn add", "1.b_bn relu"]),
    }[operation][0 if fused or provider == ALONE else 1]
    passes = plan.backward if operation.startswith("∇") else plan.forward
    return total(each for each in passes if each.name in names)


def fused(operation: str, own: Engine, given: Inputs) -> Results:
    """Return a call of an engine's own operation. Of a gradient it returns ds, dγ, dβ and the coefficients of
    dy, which the next operation forms."""
    n, c, h, w = given.y.shape
    device, with_residual = given.y.device, operation in ("conv1", "∇conv1", "form")
    conv = region(c).convs[0]
    rows = given.y.double().permute(0, 2, 3, 1).reshape(-1, c)
    mean, rstd = rows.mean(0), (rows.var(0, correction=0) + EPSILON).rsqrt()
    scale = given.gamma * rstd
    norm = NormVectors(torch.stack([mean, rstd, scale, given.beta - mean * scale]).float(), True)
    vectors = NormVectors(torch.empty(4, c, device=device), True)
    target = NormTarget(nn.BatchNorm2d(c).to(device), None, vectors)
    source = LazyActivation((given.y,), (norm,), given.residual if with_residual else None, RELU)
    packed = own.pack(conv, given.weight, given.y.dtype)

    def forward() -> list[Tensor]:
        y, _ = own.convolve(conv, packed, source, with_residual, with_residual, target)
        own.ready(target.norm)
        return [y]

    def form() -> list[Tensor]:
        z = own.form(source, True).z
        assert z is not None
        return [z]

    if not operation.startswith("∇"):
        return form if operation == "form" else forward
    affine = torch.empty(2, c, device=device)
    mask = Mask(RELU, own.form(source, True).mask if with_residual else None, (given.y,), (norm,), (affine,))
    one, zero = torch.ones(c, device=device), torch.zeros(c, device=device)
    # its y is multiplied by zero, and read all the same
    path = BackpropPath(conv, packed, given.dy, given.residual, (one, zero, zero))

    def gradient() -> list[Tensor]:
        ds, coefficients = own.gradient([path], [given.added] if with_residual else [], mask, (n, c, h, w))
        settled = own.settle(coefficients[0])  # writes dγ and dβ at the latest
        return [ds, affine[0], affine[1], *(t for t in settled if t is not None)]

    return gradient


def stock(operation: str, given: Inputs) -> Results:
    """Return a call of the operations that autograd calls, by their own names: nothing of autograd's is in
    the time. In float64 it is the oracle."""
    aten, with_residual = torch.ops.aten, operation in ("conv1", "∇conv1", "form")
    running = torch.zeros_like(given.gamma), torch.ones_like(given.gamma)

    def normalised() -> Any:
        affine = given.gamma, given.beta
        return aten._batch_norm_impl_index(given.y, *affine, *running, True, 0.1, EPSILON, True)

    def formed(n: Tensor) -> Tensor:
        return F.relu(n + given.residual if with_residual else n)

    def form() -> list[Tensor]:
        return [formed(normalised()[0])]

    def forward() -> list[Tensor]:
        return [F.conv2d(formed(normalised()[0]), given.weight, None, padding=1)]

    if not operation.startswith("∇"):
        return form if operation == "form" else forward
    n, mean, rstd, reserve, kind = normalised()
    z = formed(n)

    def gradient() -> list[Tensor]:
        dz = aten.convolution_backward(given.dy, z, given.weight, None, *GEOMETRY)[0]
        ds = aten.threshold_backward(dz + given.added if with_residual else dz, z, 0)
        saved = given.y, ds, given.gamma, *running, mean, rstd
        more = True, EPSILON, [True, True, True], reserve
        dy, dgamma, dbeta = aten._batch_norm_impl_index_backward(kind, *saved, *more)
        return [ds, dgamma, dbeta, dy]

    return gradient


def alone(operation: str, given: Inputs) -> Results:
    """Return a call of the convolution, or of its input gradient, and of nothing beside it."""
    if not operation.startswith("∇"):
        z = F.relu(given.y)
        return lambda: [F.conv2d(z, given.weight, None, padding=1)]
    backward = torch.ops.aten.convolution_backward
    return lambda: [backward(given.dy, given.y, given.weight, None, *GEOMETRY)[0]]


def error(found: list[Tensor], exact: list[Tensor], given: Inputs) -> float:
    """Return the largest of the results' errors against float64's."""
    if len(found) > len(exact):
        c1, c2, c0 = (t.double().view(1, -1, 1, 1) for t in found[3:])
        found = [*found[:3], c1 * found[0].double() + c2 * given.y.double() + c0]
    return max(relative(a, b) for a, b in zip(found, exact, strict=True))


def allowed(blocks: Blocks) -> float:
    """Return the error to allow: a few dozen roundings, Winograd's transforms among them, bfloat16's few; and
    those of dγ's and dβ's sums."""
    rounding = (64 if blocks.precision == "fp32" else 8) * torch.finfo(STORED[blocks.precision]).eps
    return max(rounding, summing(blocks.batch_size * blocks.size**2))


@torch.no_grad()
def measure(
    blocks: Blocks,
    operation: str,
    device: torch.device,
    machine: dict[str, float],
    rounds: int,
    providers: Mapping[str, Engine | None] | None = None,
) -> dict[tuple[str, str], Row]:
    """Return, by cache and provider, the row: all providers in turn, after the gate, which
    the convolution alone has nothing to be let through for.

    providers: fastbn's by name with their engine, STOCK and ALONE with none; stock, and fastbn by its auto
    engine, where none are given."""
    if providers is None:
        engine, _ = choose("auto", device, STORED[blocks.precision])
        assert engine is not None
        providers = {STOCK: None, f"fastbn {engine.name}": engine}
    given = inputs(blocks, device)
    exact = stock(operation, given.double())()
    rows, calls = {}, {}
    for name, engine in providers.items():
        spent = cost(blocks, operation, name)
        row = Row.of("kernel", blocks, name, "", width=blocks.channels)
        row.launches, row.moved_bytes, row.flops = spent.launches, spent.moved, spent.flops
        rows[name] = row
        try:
            if engine is not None:
                call = fused(operation, engine, given)
            else:
                call = (stock if name == STOCK else alone)(operation, given)
            off = 0.0 if name == ALONE else error(call(), exact, given)
            row.gradient_error = off if name != ALONE and math.isfinite(off) else None
            if off > allowed(blocks):
                row.failed = f"off by {off:.1e} against float64, allowed {allowed(blocks):.1e}"
            else:
                calls[name] = clock.captured(call, device)
                calls[name]()
        except Exception as problem:  # its row says what went wrong, and the others are measured
            row.failed = reason(problem)
    flush = torch.empty(FLUSH[device.type], dtype=torch.uint8, device=device)
    found = {}
    for cache in CACHES:
        prepare = {name: flush.zero_ if cache == "cold" else call for name, call in calls.items()}
        samples = clock.interleaved(calls, rounds, device, before=prepare, clock=clock.device_seconds)
        for name, row in rows.items():
            own = dataclasses.replace(row, case=f"{operation}, {blocks.title}, caches {cache}")
            if name in samples:
                own.time(samples[name])
                least = costs.least_seconds(cost(blocks, operation, name), machine, blocks.precision)
                own.roofline_share = least / (own.seconds or 1.0)
            found[cache, name] = own
    return found
