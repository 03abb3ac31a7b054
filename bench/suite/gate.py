"""The gate before the clock: every provider's gradients of γ and β against float64, on the very step that is
timed.

The network is flip-free, β = ±6, so that no ReLU's sign depends on a rounding; and its logits are small, so
that no softmax saturates. Allowed is 32·ε·√depth: a few roundings per layer, Winograd's transforms among
them, that grow as independent ones do; ε is that of the shortest numbers which a gradient passes. And √M·ε of
float32 for sums over M = N·H·W pixels: stock's own, taken one after another, are off by as much on a CPU. A
mistake in a formula shows as 1e-2 and more in float32."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.oracle.errors import relative
from bench.oracle.networks import flip_free, gradient
from bench.suite.cases import STORED, Case
from bench.suite.steps import Provider, Ready

SMALL = 0.02  # × fc's weight: logits of order 1 where activations are of order 10


def allowed(case: Case, provider: Provider) -> float:
    """Return the norm-wise relative error that all γ's and β's gradients together may have.

    At half precision it is no sharp test, and can't be: at depth 56 bfloat16's is capped at one half."""
    rounding = 32 * torch.finfo(STORED[provider.precision]).eps * math.sqrt(case.depth)
    return min(max(rounding, summing(case.batch_size * case.size**2)), 0.5)


def summing(m: int) -> float:
    """Return what a float32 sum of m terms may be off by, relative to them."""
    return torch.finfo(torch.float32).eps * math.sqrt(m)


def error(ready: Ready, expected: Tensor) -> float:
    """Return the error of one step of this provider's, which is then reset; running statistics are as they
    were before."""
    ready.reset()
    with steady(ready.model):
        ready.step()
        found = gradient(ready.model)
    ready.reset()
    return relative(found, expected)


def expected(case: Case, device: torch.device) -> Tensor:
    """Return the same gradient by the stock path in float64."""
    model = case.network().to(device).double()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, labels = case.inputs(device)
    with steady(model):
        F.cross_entropy(model(x.double().contiguous(memory_format=torch.channels_last)), labels).backward()
    return gradient(model)


@contextlib.contextmanager
def steady(model: nn.Module) -> Iterator[None]:
    """Make a network flip-free and its logits small inside; what a step moves is put back at the end, in
    place."""
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    trained = [p for p in model.parameters() if p.requires_grad]
    moved = {id(t): t for t in (*trained, *model.buffers(), *linear)}
    before = [(t, t.detach().clone()) for t in moved.values()]
    flip_free(model)
    with torch.no_grad():
        for weight in linear:
            weight.mul_(SMALL)
    try:
        yield
    finally:
        with torch.no_grad():
            for t, old in before:
                t.copy_(old)
