"""explain(model): what runs fused, what runs stock, and why, as data that prints itself."""

from __future__ import annotations

import collections
import dataclasses

import torch
from torch import fx, nn

from fastbn.engine import select
from fastbn.engine.algorithm import Algorithm
from fastbn.engine.fuse import Fused, fused_forward
from fastbn.engine.interface import Engine
from fastbn.engine.region import FusedRegion
from fastbn.errors import UsageError
from fastbn.graph.regions import Graph, Region
from fastbn.planning.gain import Gain, predicted
from fastbn.planning.step_memory import NetworkMemory

NAMED = 3  # so many of a kind are named where not all are asked for
# where no image is given, the sides of those that multiplications are counted for: the first that can be read
LARGE, SMALL = 224, 32
OUTWEIGHS = ": at this batch copies of their weights would outweigh the activations"
TRADED = {
    Algorithm.RAW.value: f"{OUTWEIGHS}; slower, for less memory",
    Algorithm.WINOGRAD_2_RAW.value: f"{OUTWEIGHS}, or gain nothing",
    Algorithm.WINOGRAD_4_RAW.value: f"{OUTWEIGHS}, or gain nothing",
}


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The result of `explain`: `graph` holds the regions and the stock nodes; `engine` and `why` say which
    engine runs the regions."""

    model: str
    engine: str
    why: str
    graph: Graph
    algorithms: dict[str, int]  # how many convolutions each runs
    fused: bool  # whether the model was given the engine
    convolutions: tuple[int, int] = (0, 0)  # how many run fused, and how many there are
    # the same of the convolutions' multiplications; None where they can't be counted
    multiplications: tuple[int, int] | None = None
    # of a training step on the images that were named; None where nothing is known of such a step
    gain: Gain | None = None
    verbose: bool = False

    def __str__(self) -> str:
        fused, every = self.convolutions
        share = ""
        if self.multiplications is not None and self.multiplications[1]:
            share = f" ({_percent(*self.multiplications)} of the multiplications)"
        gained = "" if self.gain is None else f"; predicted {self.gain.ratio:.1f}× stock BN-only"
        first = (
            f"{self.model}: {fused} of {every} convolutions run fused{share}{gained}; engine {self.engine} "
            f"({self.why})"
        )
        if not self.fused:
            first += "; not fused yet: this is what fuse(model) would do"
        algorithms = [
            f"  {count} convolutions by {algorithm}" + TRADED.get(algorithm, "")
            for algorithm, count in self.algorithms.items()
        ]
        return "\n".join([first, *self._regions(), *algorithms, *self._stock()])

    def _regions(self) -> list[str]:
        regions = self.graph.regions
        if self.verbose or len(regions) == 1:
            pairs = [(region, region.convs[0], region.convs[-1]) for region in regions]
            ends = [
                (f"{first.name or first.norm} … {last.norm or last.name}", region)
                for region, first, last in pairs
            ]
            return [
                f"  fused {number}: {name}: {_counts(region)}" for number, (name, region) in enumerate(ends)
            ]
        return [f"  fused: {len(regions)} regions: {_counts(*regions)}"] if regions else []

    def _stock(self) -> list[str]:
        stock = self.graph.stock
        if self.verbose:
            return [f"  stock: {what}" + (f": {why}" if why else "") for what, why in stock]
        reasons = collections.defaultdict(list)
        for what, why in stock:
            if why:
                reasons[why].append(what)
        lines = [f"  stock: {why}: {_named(names)}" for why, names in reasons.items()]
        others = collections.Counter(what for what, why in stock if not why)
        if others:
            names = [what if count == 1 else f"{count} × {what}" for what, count in others.most_common()]
            lines.append(f"  stock, between the regions: {_named(names)}")
        if any(len(names) > NAMED for names in (*reasons.values(), others)) or len(self.graph.regions) > 1:
            lines.append("  explain(model, verbose=True) lists each")
        return lines


def _percent(part: int, whole: int) -> str:
    """Return a share in percent, rounded down: 100% is all of them."""
    return f"{100 * part // whole}%"


def _named(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _counts(*regions: Region) -> str:
    joins = [join for region in regions for join in region.joins]
    functions = collections.Counter(join.function.name for join in joins)
    convs = [conv for region in regions for conv in region.convs]
    both = [sum(not conv.copies for conv in convs), sum(not conv.bare for conv in convs)]
    alike = both[0] == both[1]
    counts = (
        f"{both[0]} convolutions with their BatchNorms"
        if alike
        else f"{both[0]} convolutions, {both[1]} BatchNorms",
        f"{sum(join.residual is not None or len(join.convs) > 1 for join in joins)} additions",
        *(f"{count} {name}" for name, count in functions.items() if name != "identity"),
    )
    return f"{', '.join(counts)}; {2 * sum(conv.channels for conv in convs if not conv.bare):,} γ and β"


def explain(
    model: nn.Module,
    image: tuple[int, int, int] | torch.Tensor | None = None,
    batch: int = 1,
    verbose: bool = False,
) -> Explanation:
    """Return what fuse(model) runs fused and what it leaves to stock PyTorch, for the model as it now is and
    the device it is on.

    image: (channels, height, width) of what it will read, and batch: how many at once; or a batch of it. With
    it the gain of a training step over stock's is predicted, where such steps of this kind of CPU are on
    record (docs/networks.md says how well). Some convolutions take another algorithm by their images' size,
    or one that needs less memory where packed weights would outweigh the activations of a batch; without it
    they are counted under the one that they take at large, and multiplications are those of an image of
    224 × 224, or 32 × 32, or not counted.
    verbose: every region and every stock operation on a line of its own. A model that was not fused is read
    as fuse(model) would. Where its forward has arguments, it is read as it was last called. Of a model of
    which no trace would mean the same it lists the model itself, and the line that says so."""
    if isinstance(image, torch.Tensor):
        if image.dim() != 4:
            raise UsageError(f"image must be a batch (N, C, H, W), got {tuple(image.shape)}; add a dimension")
        batch, *rest = image.shape
        image = rest[0], rest[1], rest[2]
    given, gain = fused_forward(model), None
    fused = given or Fused(model, "auto")
    like = next(iter(model.parameters()), torch.empty(0))
    program = fused.latest(like.device, like.dtype)
    graph = program.graph
    engine, why = select.choose(fused.choice, like.device, like.dtype, fused.exact)
    assert engine is not None  # fuse(model, "stock") leaves no fused forward behind
    if image is None or program.module is None:
        algorithms = collections.Counter(
            engine.algorithm(conv).value
            for region in graph.regions
            for conv in region.convs
            if not conv.copies
        )
        products = None if program.module is None else _products(model, engine, program.module)
    else:
        network = NetworkMemory(model, engine, program.module)
        products = network.multiplications((1, *image))
        by_region = network.shapes((batch, *image))
        algorithms = collections.Counter(
            algorithm.value
            for region, shapes in by_region
            for conv, algorithm in zip(region.convs, engine.choices(region.convs, shapes), strict=True)
            if not conv.copies
        )
        gain = predicted(program.module, engine, [like.new_empty((batch, *image))])
    inside = sum(not conv.copies for region in graph.regions for conv in region.convs)
    counts = inside, inside + _outside(model, program.module)
    return Explanation(
        type(model).__name__,
        engine.name,
        why,
        graph,
        dict(algorithms),
        given is not None,
        counts,
        products,
        gain,
        verbose,
    )


def _outside(model: nn.Module, program: fx.GraphModule | None) -> int:
    """Return how many convolutions run stock: those that a program calls, by themselves or within a part that
    runs as it was written; all of a model that has none."""
    called: list[nn.Module] = [model]
    if program is not None:
        modules = dict(program.named_modules(remove_duplicate=False))
        nodes = [node for node in program.graph.nodes if node.op == "call_module"]
        stock = [modules[str(node.target)] for node in nodes]
        called = [module for module in stock if not isinstance(module, FusedRegion)]
    return sum(isinstance(part, nn.modules.conv._ConvNd) for each in called for part in each.modules())


def _products(model: nn.Module, engine: Engine, program: fx.GraphModule) -> tuple[int, int] | None:
    """Return the products for an image of a usual size; None where the model can read neither."""
    channels = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    for side in (LARGE, SMALL):
        try:
            return NetworkMemory(model, engine, program).multiplications((1, channels, side, side))
        except Exception:  # a model that can't read such an image raises what it likes
            continue
    return None
