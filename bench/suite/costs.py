"""The least that a step must cost, by the graph's traffic model and this machine's own rates."""

from __future__ import annotations

import functools

from bench.suite.cases import STORED, Case
from bench.suite.steps import Provider
from fastbn.engine.reference.engine import Reference
from fastbn.graph.regions import Region, Shape
from fastbn.planning import traffic
from fastbn.planning.cost import Cost, roofline, total
from fastbn.planning.step_memory import NetworkMemory


def least_seconds(cost: Cost, machine: dict[str, float], precision: str) -> float:
    """Return the seconds that this cost can't be done under, by the machine's own rates in this precision; of
    a CPU by float32's, in which fastbn computes there whatever it stores."""
    wide = machine["matmul_flops_per_second"]
    products = wide if precision == "fp32" else machine.get("matmul_bf16_flops_per_second", wide)
    return roofline(cost, machine["copy_bytes_per_second"], products)


@functools.lru_cache(64)
def regions(case: Case) -> list[tuple[Region, tuple[Shape, ...], tuple[bool, ...]]]:
    """Return each region of this case's network with the shapes of its inputs, and which of them require a
    gradient: the images do not, what the first region hands on does."""
    network, images = case.network(), (case.batch_size, 3, case.size, case.size)
    found = []
    for region, shapes in NetworkMemory(network, Reference()).shapes(images):
        inputs = range(region.inputs)
        found.append((region, tuple(shapes[value] for value in inputs), (bool(found),) * len(inputs)))
    return found


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
