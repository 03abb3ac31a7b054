"""What a step must cost, by the graph's traffic model, and what this machine could do it in, by its own
rates."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx

from bench.suite.cases import Case
from bench.suite.clock import kernel_seconds
from bench.suite.providers import Provider
from fastbn.engine.fused_program import read
from fastbn.engine.reference import Reference
from fastbn.engine.region import FusedRegion
from fastbn.planning import traffic

BYTES = {"fp32": 4, "amp-fp16": 2, "amp-bf16": 2, "bf16": 2, "mixed": 2}  # an element of what is stored


def machine_rates(device: torch.device, small: bool = False) -> dict[str, float]:
    """A Record's `machine`: the bytes a second of a large copy, read and written, and the FLOP/s of a large
    matrix product, fp32 and never TF32; on CUDA in bfloat16 too. The fastest of seven: what else runs could
    only slow them."""
    torch.backends.cuda.matmul.allow_tf32 = False
    elements, side = (
        (1 << 20, 256) if small else (1 << 28, 8192) if device.type == "cuda" else (1 << 25, 2048)
    )
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)

    def fastest(call: Any) -> float:
        return min(kernel_seconds(call, device) for _ in range(8))

    found = {"copy_bytes_per_second": 8 * elements / fastest(lambda: target.copy_(source))}
    kinds = {"": torch.float32} | ({"_bf16": torch.bfloat16} if device.type == "cuda" else {})
    for name, dtype in kinds.items():
        a = torch.randn(side, side, device=device).to(dtype)
        found[f"matmul{name}_flops_per_second"] = 2 * side**3 / fastest(lambda a=a: a @ a)
    return found


def least_seconds(cost: traffic.Cost, machine: dict[str, float], precision: str) -> float:
    """The seconds that this cost can't be done under, by the machine's own rates in this precision; of a CPU
    by float32's, in which fastbn computes there whatever it stores."""
    wide = machine["matmul_flops_per_second"]
    products = wide if precision == "fp32" else machine.get("matmul_bf16_flops_per_second", wide)
    return traffic.roofline(cost, machine["copy_bytes_per_second"], products)


@functools.lru_cache(64)
def regions(case: Case) -> tuple[tuple[Any, tuple[Any, ...], tuple[bool, ...]], ...]:
    """Of this case's network: each region with the shapes of its inputs, and which of them require a
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
            found.append(
                (module.region, tuple(tuple(x.shape) for x in args), tuple(x.requires_grad for x in args))
            )
            return module._stock[0](*args)

    _, program = read(model, {}, Reference(), {})
    Shapes(program).run(images)
    return tuple(found)


def plan(case: Case, provider: Provider) -> traffic.TrafficPlan:
    """What this provider's forward and backward are by the model; pooling, the head, the loss and the
    update aside."""
    size, all_trains = BYTES[provider.precision], provider.trains == "all"
    found = traffic.TrafficPlan()
    for region, shapes, wanted in regions(case):
        # where the first region trains its weights, what it hands on requires a gradient just the same
        each = traffic.TrafficCase(region, shapes, size, size, wanted)
        found += traffic.stock(each, all_trains) if provider.stock else traffic.fused(each)
    return found


def figures(case: Case, provider: Provider) -> dict[str, int]:
    """A Row's moved_bytes, flops and launches."""
    found = plan(case, provider)
    cost = traffic.total(found.forward + found.backward)
    return {"moved_bytes": cost.moved, "flops": cost.flops, "launches": cost.launches}


def roofline_share(case: Case, provider: Provider, seconds: float, machine: dict[str, float]) -> float:
    """The least time of forward and backward, over the time that the whole step took."""
    found = plan(case, provider)
    least = sum(
        least_seconds(traffic.total(passes), machine, provider.precision)
        for passes in (found.forward, found.backward)
    )
    return least / seconds
