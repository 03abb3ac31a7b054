"""The oracle of the engine's tests: the model's own stock path under autograd, in float64, with random
upstream gradients."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.oracle.errors import relative
from fastbn.engine import fuse
from fastbn.planning.explain import explain


@dataclasses.dataclass
class Run:
    """What one forward and backward left behind."""

    outputs: list[Tensor]
    parameters: dict[str, Tensor | None]  # gradients
    inputs: list[Tensor | None]  # gradients
    buffers: dict[str, Tensor]  # running statistics


def tolerance(dtype: torch.dtype, layers: int = 1) -> float:
    """Return the norm-wise relative error to allow: each layer rounds an activation a few times, forward and
    backward.

    float64 is the real test and its figure is fixed: far above eps·layers, far below any mistake in a
    formula."""
    return 1e-9 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps * layers


def error(found: Tensor, expected: Tensor) -> float:
    """Return the norm-wise relative error, absolute below a norm of 0.1: some gradients are zero but for
    rounding (β, where no ReLU closes before the next BatchNorm)."""
    return relative(found, expected, least=0.1)


def flat_gradient(found: Run) -> Tensor:
    """Return every parameter's gradient in one vector: in short arithmetic the ones that are all rounding
    drown in it."""
    return torch.cat([g.double().flatten() for g in found.parameters.values() if g is not None])


def upstream(outputs: list[Tensor], seed: int = 7) -> list[Tensor]:
    """Random: the gradient of a sum makes every BatchNorm gradient zero."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(z.shape, generator=draw, dtype=torch.float64).to(z) for z in outputs]


def run(
    model: nn.Module,
    *inputs: Tensor,
    dropout_seed: int = 0,
    inside: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Run:
    """Return what a forward (`inside` a context) and a backward leave, of a model whose gradients are cleared
    first, from copies of the inputs."""
    model.zero_grad()
    copies = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    torch.manual_seed(dropout_seed)
    with inside():
        result = model(*copies)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    gradients = upstream(outputs)
    live = [(z, g) for z, g in zip(outputs, gradients, strict=True) if z.requires_grad]
    if live:
        torch.autograd.backward([z for z, _ in live], [g for _, g in live])
    return Run(
        outputs,
        {name: p.grad for name, p in model.named_parameters()},
        [x.grad for x in copies],
        {name: b.clone() for name, b in model.named_buffers()},
    )


def stock(model: nn.Module) -> nn.Module:
    return fuse(copy.deepcopy(model), "stock")


def fused(model: nn.Module, engine: str = "reference") -> nn.Module:
    return fuse(copy.deepcopy(model), engine)


def assert_same(found: Run, expected: Run, tol: float) -> None:
    assert [z.requires_grad for z in found.outputs] == [z.requires_grad for z in expected.outputs]
    pairs = {f"output {i}": pair for i, pair in enumerate(zip(found.outputs, expected.outputs, strict=True))}
    for what in ("parameters", "buffers"):
        ours, theirs = getattr(found, what), getattr(expected, what)
        assert list(ours) == list(theirs)
        pairs |= {name: (ours[name], theirs[name]) for name in theirs}
    pairs |= {f"input {i}": pair for i, pair in enumerate(zip(found.inputs, expected.inputs, strict=True))}
    for name, (ours, theirs) in pairs.items():
        assert (ours is None) == (theirs is None), f"{name}: one of the two has a gradient"
        if ours is not None and theirs.is_floating_point():
            assert error(ours, theirs) <= tol, f"{name}: {error(ours, theirs):.1e} > {tol:.1e}"
        elif ours is not None:
            assert torch.equal(ours, theirs), name


def assert_like_stock(
    model: nn.Module, *inputs: Tensor, warning: str | None = None, calls: int = 1
) -> nn.Module:
    """Fused equals stock, both in float64: outputs, every gradient, running statistics. Something does run
    fused, and nothing falls back, unless `warning` says which one warning is expected. Returns the fused
    model."""
    model = copy.deepcopy(model).double()
    inputs = tuple(x.detach().double().requires_grad_(x.requires_grad) for x in inputs)
    ours, theirs = fused(model), stock(model)
    assert explain(ours).graph.regions
    for _ in range(calls):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = run(ours, *inputs)
        said = [str(w.message) for w in caught if str(w.message).startswith("fastbn")]
        assert len(said) == (0 if warning is None else 1) and all(warning in text for text in said), said
        assert_same(found, run(theirs, *inputs), tolerance(torch.float64))
        warning = None  # it is said once
    return ours
