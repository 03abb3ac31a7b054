"""The least time that a step can take, on a device of known speeds.

    seconds ≥ Σ over launches of max(bytes / bytes_per_second, FLOPs / flops_per_second) + launch

Traffic and FLOPs are the graph's (planning/traffic.py); an algorithm that makes fewer or more products than
the sum itself is counted so."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING

import torch

from fastbn.engine.interface import Engine
from fastbn.graph.regions import Region, Shape
from fastbn.planning import traffic
from fastbn.planning.cost import Cost
from fastbn.planning.cost import roofline as least_seconds
from fastbn.planning.data_sheets import Device

if TYPE_CHECKING:
    from fastbn.planning.plan import Plan, Planner


def costs(region: Region, shapes: dict[int, Shape], dtypes: tuple[torch.dtype, torch.dtype]) -> list[Cost]:
    """Return the costs of a forward and a backward, launch by launch."""
    case = traffic.TrafficCase(
        region, tuple(shapes[i] for i in range(region.inputs)), dtypes[0].itemsize, dtypes[1].itemsize
    )
    plan = traffic.fused(case)
    return [each.cost for each in itertools.chain(plan.forward, plan.backward)]


def seconds(planner: Planner, plan: Plan, precision: str, device: Device) -> float:
    """Return the least seconds that a step by this plan can take on the device, its recomputation among
    them."""
    rate, total = device.flops_per_second[precision], 0.0
    for region, shapes in planner.regions(plan.bn_batch):
        share, recomputed = products(region, shapes, planner.network.engine), 0.0
        for cost in costs(region, shapes, planner.dtypes):
            recomputed += cost.flops * share / rate
            made = dataclasses.replace(cost, flops=int(cost.flops * share))
            total += least_seconds(made, device.bytes_per_second, rate) + device.launch * cost.launches
        total += plan.again * recomputed
    return total * plan.batch / plan.bn_batch


def line(planner: Planner, plan: Plan, precision: str, device: Device, busy: str = "") -> str:
    """Return what --explain says of it, in two digits: rates that a copy and a product reach are no bound to
    the last digit, for caches serve some of the bytes. busy: what else wanted the device while it was
    measured."""
    least = seconds(planner, plan, precision, device)
    said = (
        f"at least about {rounded(1e3 * least)} ms a step, at most about {rounded(plan.batch / least)} "
        f"images/s, {device.name} {device.source}"
    )
    return f"{said} {busy}: an idle machine does better" if busy else said


def rounded(value: float) -> str:
    """Return a number of two significant digits, without an exponent: 0.032, 7.8, 78, 1,600."""
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def products(region: Region, shapes: dict[int, Shape], engine: Engine) -> float:
    """Return the products that the engine's algorithms make for each product of the convolutions' definition,
    on average."""
    asked = made = 0.0
    for join in region.joins:
        for conv in join.convs:
            each = math.prod(conv.weight_shape) * math.prod(shapes[join.value][2:])
            asked += each
            made += each * engine.algorithm(conv, shapes[conv.source][2:]).products
    return made / asked if asked else 1.0
