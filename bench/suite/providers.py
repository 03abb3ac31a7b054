"""The providers of a training step: stock PyTorch in every way that a user could make it fast, and fastbn, on
the same network and images.

    stock-full   everything trains           plain        contiguous, eager        channels-last   eager
    stock-bn     BatchNorm's γ and β alone   compiled     channels-last, torch.compile
                                             graph        channels-last, the step as a CUDA graph
    fastbn       the same by its auto engine; fit: its own captured step; replicas: several of those

    amp-…        under autocast, channels-last        tf32, mixed   the precision, where it is not fp32

Stock is the network's own stock path, the tests' oracle. The ratio that counts is to the best of stock."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bench.suite.cases import Case
from bench.suite.steps import AUTOCAST, WHOLE, Provider, Ready
from fastbn.engine import fused_forward
from fastbn.engine.interface import Execution
from fastbn.engine.select import choose
from fastbn.errors import MachineError

STOCK = {"all": "stock-full", "bn": "stock-bn"}


def stock(ways: Iterable[str], precisions: Iterable[str], trains: Iterable[str] = STOCK) -> list[Provider]:
    """Return stock in each of these ways and precisions, channels-last."""
    found = []
    for what, way, precision in itertools.product(trains, ways, precisions):
        words = [STOCK[what], way.replace("eager", "channels-last"), *[precision] * (precision != "fp32")]
        found.append(Provider(" ".join(words), what, way=way, precision=precision))
    return found


def providers(case: Case, device: torch.device, compiled: bool = False) -> list[Provider]:
    """Return everyone who can take this case's step on this device; torch.compile only if asked for, since
    it compiles for minutes."""
    cuda = device.type == "cuda"
    if case.precision == "mixed" and not cuda:
        what = f"mixed precision is measured on CUDA, this is {device.type}"
        raise MachineError(f"{case.title}: {what}; ask for fp32 or bf16")
    amps = [amp for amp in AUTOCAST if case.precision in ("mixed", amp.removeprefix("amp-"))]
    ways = [*["compiled"] * compiled, *["graph"] * cuda]
    found = []
    for trains, name in STOCK.items():
        if case.precision == "fp32":
            found.append(Provider(name, trains, layout=torch.contiguous_format))
        found += stock(["eager"], amps or ["fp32"], [trains])
        found += stock(ways, ["amp-bf16" if amps else "fp32"], [trains])
    engine, _ = choose("auto", device, torch.bfloat16 if case.precision == "bf16" else torch.float32)
    assert engine is not None
    precision = "amp-bf16" if case.precision == "bf16" else case.precision
    found.append(Provider(f"fastbn {engine.name}", "bn", "auto", precision=precision))
    # a step that is launches alone, as fastbn.fit captures it
    if cuda and engine.execution is Execution.CUDA_GRAPH:
        found.append(dataclasses.replace(found[-1], name=f"{found[-1].name} graph", way="graph"))
    return found


def in_every_precision(case: Case, device: torch.device, mixed: bool) -> list[Provider]:
    """Return who a visit to a GPU times, in every precision: what a little time should go to comes first.

    First what the bars ask for, then what takes minutes to compile, then the precisions that nobody trains in
    for speed. `mixed`: whether fastbn offers that precision here."""
    cuda = device.type == "cuda"
    fast, rest = (["amp-fp16", "amp-bf16"], ["tf32", "fp32"]) if cuda else ([], ["fp32"])
    fit, eager = (
        [Provider(f"fastbn triton {way} {kind}", "bn", "triton", way=way, precision=kind) for kind in kinds]
        for way, kinds in (("fit", [*["mixed"] * mixed, *fast, *rest]), ("eager", [*fast, *rest]))
    )
    compiled = stock(["compiled"], fast) if case.depth <= WHOLE else []
    found = [*fit, *eager, *stock(["graph"], fast), *stock(["eager"], [*fast, *rest]), *compiled]
    return sorted(found, key=lambda p: rest.index(p.precision) + 1 if p.precision in rest else 0)


def replicas(counts: Iterable[int], precision: str) -> list[Provider]:
    """Return fastbn's fit with so many networks at a time."""
    own = ("bn", "triton", torch.channels_last, "fit", precision)
    return [Provider(f"fastbn triton fit {precision}, {count} at a time", *own, count) for count in counts]


def few(everyone: list[Provider], way: str) -> list[Provider]:
    """Return one of each kind, taking steps this way: for a curve of many cases, for runs, for the guard."""
    laid = (p for p in everyone if p.way == way and p.layout == torch.channels_last)
    return [p for p in laid if p.precision != "amp-fp16"]


def likely_best(device: torch.device) -> str:
    """Return the way of few() that is the fastest, as a rule."""
    return "graph" if device.type == "cuda" else "eager"


def left_out(device: torch.device, compiled: bool) -> list[str]:
    """Return what was not measured, to be said beside the figures."""
    if device.type == "cuda":
        return []
    said = ["automatic mixed precision, CUDA graphs and energy: there is no CUDA device here"]
    return said + ["stock under torch.compile: --compiled adds it, a minute or two a case"] * (not compiled)


def saved_bytes(ready: Ready) -> int:
    """Return the bytes kept for the backward: each storage once, parameters aside, and what the model holds
    besides (fastbn's packed weights)."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ready.forward()
    return sum(storages.values()) + packed_bytes(ready.model)


def packed_bytes(model: nn.Module) -> int:
    """Return the bytes of the frozen weights as fastbn's engine packed them, beside the parameters
    themselves; 0 for a stock model."""
    fused = fused_forward(model)
    packs = [pack for own in fused._packs.values() for _, _, pack in own.values()] if fused else []
    parts = ([pack] if isinstance(pack, Tensor) else [pack.forward, pack.backward] for pack in packs)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for own in parts for t in own}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}  # some are used as they are
    return sum(size for at, size in storages.items() if at not in weights)
