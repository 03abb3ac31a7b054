"""The least that a step must cost, by the graph's traffic model and this machine's own rates."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx

from bench.suite.cases import STORED, Case
from bench.suite.steps import Provider
from fastbn.engine.program.build import read
from fastbn.engine.reference.engine import Reference
from fastbn.engine.region import FusedRegion
from fastbn.planning import traffic
from fastbn.planning.cost import Cost, roofline, total


def least_seconds(cost: Cost, machine: dict[str, float], precision: str) -> float:
    """Return the seconds that this cost can't be done under, by the machine's own rates in this precision; of
    a CPU by float32's, in which fastbn computes there whatever it stores."""
    wide = machine["matmul_flops_per_second"]
    products = wide if precision == "fp32" else machine.get("matmul_bf16_flops_per_second", wide)
    return roofline(cost, machine["copy_bytes_per_second"], products)


@functools.lru_cache(64)
def regions(case: Case) -> tuple[tuple[Any, tuple[Any, ...], tuple[bool, ...]], ...]:
    """Return each region of this case's network with the shapes of its inputs, and which of them require a
    gradient."""
    with torch.device("meta"):
        model = case.network()
        images = torch.empty(case.batch_size, 3, case.size, case.size)
    found = []

    class Shapes(fx.Interpreter):
        def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            module = self.fetch_attr(target)
            if not isinstance(module, FusedRegion):
                return super().call_module(target, args, kwargs)
            shapes = tuple(tuple(x.shape) for x in args)
            found.append((module.region, shapes, tuple(x.requires_grad for x in args)))
            return module._stock[0](*args)

    _, program = read(model, {}, Reference(), {})
    Shapes(program).run(images)
    return tuple(found)


def plan(case: Case, provider: Provider) -> traffic.TrafficPlan:
    """Return this provider's forward and backward by the model; pooling, the head, the loss and the update
    aside."""
    size, all_trains = STORED[provider.precision].itemsize, provider.trains == "all"
    found = traffic.TrafficPlan()
    for region, shapes, wanted in regions(case):
        # where the first region trains its weights, what it hands on requires a gradient just the same
        each = traffic.TrafficCase(region, shapes, size, size, wanted)
        found += traffic.stock(each, all_trains) if provider.stock else traffic.fused(each)
    return found


def figures(case: Case, provider: Provider) -> dict[str, int]:
    """Return a Row's moved_bytes, flops and launches."""
    found = plan(case, provider)
    cost = total(found.forward + found.backward)
    return {"moved_bytes": cost.moved, "flops": cost.flops, "launches": cost.launches}


def roofline_share(case: Case, provider: Provider, seconds: float, machine: dict[str, float]) -> float:
    """Return the least time of forward and backward, over the time that the whole step took."""
    found, rates = plan(case, provider), (machine, provider.precision)
    return sum(least_seconds(total(each), *rates) for each in (found.forward, found.backward)) / seconds
