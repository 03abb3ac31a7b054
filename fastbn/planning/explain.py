"""explain(model): what runs fused, what runs stock, and why, as data that prints itself."""

from __future__ import annotations

import collections
import dataclasses

import torch
from torch import nn

from fastbn.engine import select
from fastbn.engine.fuse import Fused, fused_forward
from fastbn.graph.regions import Graph
from fastbn.planning.step_memory import NetworkMemory


@dataclasses.dataclass(frozen=True)
class Explanation:
    """`graph` holds the regions and the stock nodes; `engine` and `why` say who carries the regions out."""

    model: str
    engine: str
    why: str
    graph: Graph
    algorithms: dict[str, int]  # how many convolutions each carries out
    fused: bool  # whether the model was given the engine

    def __str__(self) -> str:
        lines = [f"{self.model}: engine {self.engine} ({self.why})"]
        if not self.fused:
            lines[0] += "; not fused yet: this is what fuse(model) would do"
        for number, region in enumerate(self.graph.regions):
            first, last = region.convs[0], region.convs[-1]
            counts = (
                f"{len(region.convs)} convolutions with their BatchNorms",
                f"{sum(join.residual is not None or len(join.convs) > 1 for join in region.joins)} additions",
                f"{sum(join.relu for join in region.joins)} ReLUs",
            )
            lines.append(
                f"  fused {number}: {first.name} … {last.norm}: {', '.join(counts)}; "
                f"{2 * region.channels:,} γ and β"
            )
        lines += [f"  {count} convolutions by {algorithm}" for algorithm, count in self.algorithms.items()]
        lines += [f"  stock: {what}" + (f": {why}" if why else "") for what, why in self.graph.stock]
        return "\n".join(lines)


def explain(model: nn.Module, image: tuple[int, int, int] | None = None) -> Explanation:
    """What fuse(model) runs fused and what it leaves to stock PyTorch, for the model as it now is and the
    device it is on.

    image: (channels, height, width) of what it will read. Some convolutions take another algorithm by their
    images' size; without it they are counted under the one that they take at large. A model that was not
    fused is read as fuse(model) would. Where its forward has arguments, it is read as it was last called. Of
    a model of which no trace would mean the same it lists the model itself, and the line that says so."""
    given = fused_forward(model)
    fused = given or Fused(model, "auto")
    like = next(iter(model.parameters()), torch.empty(0))
    program = fused.latest(like.device, like.dtype)
    graph = program.graph
    engine, why = select.choose(fused.engine, like.device, like.dtype, fused.exact)
    assert engine is not None  # fuse(model, "stock") leaves no fused forward behind
    if image is None or program.module is None:
        algorithms = collections.Counter(
            engine.algorithm(conv) for region in graph.regions for conv in region.convs
        )
    else:
        regions = NetworkMemory(model, engine, program.module).shapes((1, *image))
        algorithms = collections.Counter(
            engine.algorithm(conv, own[conv.source][2:]) for region, own in regions for conv in region.convs
        )
    return Explanation(type(model).__name__, engine.name, why, graph, dict(algorithms), given is not None)
