"""How much faster an engine's training step is than stock PyTorch's, predicted: the step's work
(planning/work.py) by the rates of this instruction set, which `python -m bench.architectures --rates` fits to
recorded steps.

    seconds = Σ over kinds of work × seconds a unit        a byte costs both sides the same, a product its own

Rates are of two threads and batches of 8; a ratio of two steps depends on neither much. Nothing is measured
during a run. Instruction sets and devices of which no record is there get no prediction."""

from __future__ import annotations

import dataclasses
import functools
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastbn.engine import select
from fastbn.engine.fuse import Fused
from fastbn.engine.interface import Engine
from fastbn.engine.native.engine import Native
from fastbn.graph.trace.values import CLOSED
from fastbn.planning.work import step_work

TABLE = Path(__file__).with_name("step_rates.json")
SHARED = ("bytes", "far bytes", "launches", "regions")
LEAST = 1.05  # where less is possible it is said
BEST = 3.0  # times faster than stock than any regions on record are
FEWEST = 0.02  # seconds of a stock step: of shorter ones the host's part, which work does not tell, is large
# where a program's functions may come from
OWN = frozenset({"torch", "fastbn", "_operator", "builtins", "math", "None"})


@dataclasses.dataclass(frozen=True)
class Gain:
    """The predicted seconds of a training step, without the optimizer's."""

    stock: float
    fused: float
    between: float = 0.0  # of what lies between the regions, the same in both

    @property
    def ratio(self) -> float:
        """Return how many times faster the fused step is."""
        return self.stock / self.fused

    @property
    def at_most(self) -> float:
        """Return how many times faster it would be were its regions BEST times as fast as stock's: it leans
        on no rate of a fused step."""
        return self.stock / (self.between + (self.stock - self.between) / BEST)


@functools.cache
def step_rates(instructions: str) -> Mapping[str, float] | None:
    """Return the shipped seconds a unit of work, by kind, of an instruction set as the native engine names it
    ("avx512"); None where no steps of it are on record."""
    shipped = json.loads(TABLE.read_text(encoding="utf-8")).get(instructions)
    rates: Mapping[str, float] | None = None if shipped is None else shipped["rates"]
    return rates


def gain_of(stock: Mapping[str, float], fused: Mapping[str, float], rates: Mapping[str, float]) -> Gain:
    """Return the gain of a step of this work, by these rates."""
    return Gain(
        *(
            sum(amount * rates.get(rate_of(kind, side), 0.0) for kind, amount in work.items())
            for side, work in (("stock", stock), ("fused", fused))
        )
    )


def rate_of(kind: str, side: str) -> str:
    """Return the name of a kind's rate: both sides' memory and host are the same, their products are not."""
    return kind if kind in SHARED else f"{side} {kind}"


def predicted(program: fx.GraphModule, engine: Engine, inputs: list[Any]) -> Gain | None:
    """Return what a program of this engine gains in a training step on inputs like these; None where there
    are no rates, or the inputs are not the program's, or a step is of another kind: in half precision, with
    scripted parts, of shapes that values decide."""
    rates = step_rates(engine.instructions) if isinstance(engine, Native) else None
    if rates is None:
        return None
    floats = {x.dtype for x in inputs if isinstance(x, Tensor) and x.is_floating_point()}
    scripted = any(isinstance(module, CLOSED) for module in program.modules())
    if floats != {torch.float32} or torch.is_autocast_enabled("cpu") or scripted:
        return None
    try:
        stock, fused, between = step_work(program, engine, inputs)
    except Exception:  # Unfit, or a shape that only values decide: a mask as an index, say
        return None
    gain = gain_of(stock, fused, rates)
    return dataclasses.replace(gain, between=gain_of(between, between, rates).stock)


def advise(fused: Fused, program: fx.GraphModule, inputs: list[Any]) -> None:
    """Warn where what fuse() did can gain next to nothing: what runs fused is too small a part of the step,
    however fast. It is called once a fused model, at its first training call."""
    x = next(t for t in inputs if isinstance(t, Tensor))
    if x.device.type != "cpu" or x.dtype != torch.float32 or _light(fused.model, x) or not _torchs(program):
        return
    engine, _ = select.choose(fused.choice, x.device, x.dtype, fused.exact)
    gain = predicted(program, engine, inputs) if engine is not None else None
    if gain is not None and gain.at_most < LEAST and gain.stock >= FEWEST:
        warnings.warn(
            f"fuse({type(fused.model).__name__}) is predicted to gain little: at most {gain.at_most:.2f} "
            f"times stock's training step on inputs of shape {tuple(x.shape)}; explain(model) says what runs "
            "stock and why",
            stacklevel=7,
        )


def _torchs(program: fx.GraphModule) -> bool:
    """Return whether a program runs PyTorch's own operations beside the regions: a run of others may leave a
    mark."""
    modules = dict(program.named_modules(remove_duplicate=False))
    called = [type(modules[str(n.target)]) for n in program.graph.nodes if n.op == "call_module"]
    called += [n.target for n in program.graph.nodes if n.op == "call_function"]
    return all(str(f.__module__).split(".")[0] in OWN for f in called)


def _light(model: nn.Module, x: Tensor) -> bool:
    """Return whether a step is surely too short to be predicted: its convolutions, at the input's size, are
    few products."""
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    return weights * x.shape[0] * x.shape[-2:].numel() < 1e9 if x.dim() == 4 else True
