"""The gate before the clock: every provider's gradients of γ and β against float64, on the very step that is
timed.

The network is flip-free, β = ±6, so that no ReLU's sign hangs on a rounding; and its logits are small, so
that no softmax saturates. Allowed is 32·ε·√depth: a few roundings a layer, Winograd's transforms among them,
that grow as independent ones do; ε is that of the shortest numbers which a gradient passes. And √M·ε of
float32 for sums over M = N·H·W pixels: stock's own, taken one after another, are off by as much on a CPU. A
mistake in a formula shows as 1e-2 and more in float32."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.suite.cases import Case
from bench.suite.providers import Provider, Ready

EPS = {"fp32": 2.0**-23, "amp-fp16": 2.0**-10, "amp-bf16": 2.0**-7, "bf16": 2.0**-7, "mixed": 2.0**-7}
SMALL = 0.02  # × fc's weight: logits of order 1 where activations are of order 10


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def allowed(case: Case, provider: Provider) -> float:
    """The norm-wise relative error of all γ's and β's gradients together. At half precision it is no sharp
    test, and can't be: at depth 56 bfloat16's is capped at one half."""
    return min(
        max(32 * EPS[provider.precision] * math.sqrt(case.depth), summing(case.batch_size * case.size**2)),
        0.5,
    )


def summing(m: int) -> float:
    """What a float32 sum of m terms may be off by, relative to them."""
    return EPS["fp32"] * math.sqrt(m)


def error(ready: Ready, expected: Tensor) -> float:
    """Of one step of this provider's, which is then reset; running statistics are as they were before."""
    ready.reset()
    with flip_free(ready.model):
        ready.step()
        found = gradient(ready.model)
    ready.reset()
    return relative(found, expected)


def expected(case: Case, device: torch.device) -> Tensor:
    """The same gradient by the stock path in float64."""
    model = case.network().to(device).double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, labels = case.inputs(device)
    with flip_free(model):
        F.cross_entropy(model(x.double().contiguous(memory_format=torch.channels_last)), labels).backward()
    return gradient(model)


def gradient(model: nn.Module) -> Tensor:
    """Of every γ and β, in one float64 vector: in short arithmetic the ones that are all rounding drown in
    it."""
    found = [p.grad for norm in norms(model) for p in (norm.weight, norm.bias)]
    return torch.cat([g.detach().double().flatten() for g in found if g is not None])


def relative(found: Tensor, wanted: Tensor) -> float:
    """Norm-wise, in float64; infinite where a number is not finite, or is missing."""
    if found.shape != wanted.shape:
        return math.inf
    error: float = ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()
    return error if math.isfinite(error) else math.inf  # max() may pass over a NaN


@contextlib.contextmanager
def flip_free(model: nn.Module) -> Iterator[None]:
    """Inside, β = 6 where channel % 3 > 0, else −6, and logits are small; what a step moves is put back at
    the end, in place."""
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    moved = {
        id(t): t for t in (*(p for p in model.parameters() if p.requires_grad), *model.buffers(), *linear)
    }
    before = [(t, t.detach().clone()) for t in moved.values()]
    with torch.no_grad():
        for norm in norms(model):
            channel = torch.arange(norm.num_features, device=norm.bias.device)
            norm.bias.copy_(torch.where(channel % 3 > 0, 6.0, -6.0))
        for weight in linear:
            weight.mul_(SMALL)
    try:
        yield
    finally:
        with torch.no_grad():
            for t, old in before:
                t.copy_(old)
