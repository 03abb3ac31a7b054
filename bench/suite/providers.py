"""Who takes a training step: stock PyTorch in every way that a user could make it fast, and fastbn, on the
same network and images.

stock-full   everything trains            plain        contiguous, eager             channels-last   eager
stock-bn     BatchNorm's γ and β alone    compiled     channels-last, torch.compile  graph
channels-last, the step as a CUDA graph
fastbn       the same by its auto engine  amp-…        under autocast, channels-last

Stock is the network's own stock path, the tests' oracle. All take torch.optim.SGD's step; the ratio that
counts is to the best of stock."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.suite.cases import Case
from fastbn import freeze, fuse
from fastbn.engine import fused_forward
from fastbn.engine.region import mixed
from fastbn.engine.select import choose
from fastbn.errors import MachineError
from fastbn.models.resnet import BasicBlock, Bottleneck

AUTOCAST = {"amp-fp16": torch.float16, "amp-bf16": torch.bfloat16}
# the deepest network that is compiled whole; on a CPU by blocks it is slower than eager
WHOLE = {"cuda": 56, "cpu": 56}
# kinds of blocks × cases; a provider that reaches it raises, where torch would go on eagerly in silence
RECOMPILE_LIMIT = 64
SCALE = 1024.0  # of fp16's loss at first


@dataclasses.dataclass
class Ready:
    """A network and its training step."""

    model: nn.Module
    step: Callable[[], None]
    forward: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer
    start: dict[nn.Parameter, Tensor]  # what trains, as it was drawn

    @torch.no_grad()
    def reset(self) -> None:
        """What trains as it was drawn, and no momentum: as if no step had been taken. In place, for a
        graph's sake."""
        for parameter, drawn in self.start.items():
            parameter.copy_(drawn)
        for state in self.optimizer.state.values():
            state["momentum_buffer"].zero_()


@dataclasses.dataclass(frozen=True)
class Provider:
    name: str
    trains: str  # "all" or "bn"
    engine: str = "stock"
    layout: torch.memory_format = torch.channels_last
    way: str = "eager"  # or "compiled", or "graph"
    precision: str = "fp32"  # or "amp-fp16", "amp-bf16" (any's, by autocast); "mixed" is fastbn's own

    @property
    def stock(self) -> bool:
        return self.engine == "stock"

    def make(self, case: Case, device: torch.device) -> Ready:
        """Its step on this case's images, not yet taken once."""
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # stock at its best; it chooses in the first step
        model = freeze(case.network(), self.trains).to(device)
        model = model.to(memory_format=self.layout) if self.stock else fuse(model, self.engine)  # type: ignore[call-overload]
        run = _compiled(model, case, device) if self.way == "compiled" else model
        x, labels = case.inputs(device)
        x = x.contiguous(memory_format=self.layout)
        start = {p: p.detach().clone() for p in model.parameters() if p.requires_grad}
        optimizer = torch.optim.SGD(list(start), 0.1, 0.9)
        scaler = torch.amp.GradScaler(device.type, init_scale=SCALE) if self.precision == "amp-fp16" else None

        def forward() -> Tensor:
            with self._arithmetic(device):
                out: Tensor = run(x)
                return out

        def step() -> None:
            optimizer.zero_grad()
            loss = F.cross_entropy(forward().float(), labels)
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()

        return Ready(model, _graph(step, device) if self.way == "graph" else step, forward, optimizer, start)

    def _arithmetic(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "mixed":
            return mixed()
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, AUTOCAST[self.precision], cache_enabled=self.way != "graph")


def providers(case: Case, device: torch.device, compiled: bool = False) -> list[Provider]:
    """Everyone who can take this case's step on this device; torch.compile only if asked for, since it
    compiles for minutes."""
    cuda, found = device.type == "cuda", []
    if case.precision == "mixed" and not cuda:
        raise MachineError(
            f"{case.title}: mixed precision is measured on CUDA, this is {device.type}; ask for fp32 or bf16"
        )
    amps = [amp for amp in AUTOCAST if case.precision in ("mixed", amp.removeprefix("amp-"))]
    ways = [*(["compiled"] if compiled else []), *(["graph"] if cuda else [])]
    for name, trains in (("stock-full", "all"), ("stock-bn", "bn")):
        if case.precision == "fp32":
            found.append(Provider(name, trains, layout=torch.contiguous_format))
            found.append(Provider(f"{name} channels-last", trains))
            found += [Provider(f"{name} {way}", trains, way=way) for way in ways]
        else:
            found += [Provider(f"{name} channels-last {amp}", trains, precision=amp) for amp in amps]
            # a GradScaler asks the host at every step, which no graph can: bf16 needs none
            found += [
                Provider(f"{name} {way} amp-bf16", trains, way=way, precision="amp-bf16") for way in ways
            ]
    engine, _ = choose("auto", device, torch.bfloat16 if case.precision == "bf16" else torch.float32)
    assert engine is not None
    own = Provider(
        f"fastbn {engine.name}",
        "bn",
        "auto",
        precision="amp-bf16" if case.precision == "bf16" else case.precision,
    )
    found.append(own)
    if cuda and engine.name == "triton":  # a step that is launches alone, as fastbn.fit captures it
        found.append(dataclasses.replace(own, name=f"{own.name} graph", way="graph"))
    return found


def few(everyone: list[Provider], way: str) -> list[Provider]:
    """One of each kind, taking steps this way: for a curve of many cases, for runs, for the guard."""
    return [
        p for p in everyone if p.way == way and p.layout == torch.channels_last and p.precision != "amp-fp16"
    ]


def likely_best(device: torch.device) -> str:
    """The way of few() that is the fastest, as a rule."""
    return "graph" if device.type == "cuda" else "eager"


def left_out(device: torch.device, compiled: bool) -> list[str]:
    """What was not measured, to be said beside the figures."""
    if device.type == "cuda":
        return []
    said = ["automatic mixed precision, CUDA graphs and energy: there is no CUDA device here"]
    return (
        said if compiled else [*said, "stock under torch.compile: --compiled adds it, a minute or two a case"]
    )


def saved_bytes(ready: Ready) -> int:
    """Bytes kept for the backward: each storage once, parameters aside, and what the model holds besides
    (fastbn's packed weights)."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ready.forward()
    return sum(storages.values()) + packed_bytes(ready.model)


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the frozen weights as fastbn's engine packed them, beside the parameters themselves; 0 for
    a stock model."""
    fused = fused_forward(model)
    packs = (
        [pack for by_weight in fused._packs.values() for _, _, pack in by_weight.values()] if fused else []
    )
    tensors = [
        t for pack in packs for t in ([pack] if isinstance(pack, Tensor) else [pack.forward, pack.backward])
    ]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}  # some are used as they are
    return sum(size for at, size in storages.items() if at not in weights)


def _compiled(model: nn.Module, case: Case, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The whole network, or its blocks: one compilation serves all blocks of a shape."""
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    if case.depth <= WHOLE[device.type]:
        whole: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)
        return whole
    for module in model.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            module.compile(dynamic=False)
    return model


def _graph(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The whole step, recorded after three that were not: they compile, choose algorithms, and make the
    optimizer's state."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    replay: Callable[[], None] = graph.replay
    return replay
