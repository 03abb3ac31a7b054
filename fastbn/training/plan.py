"""The plan: how a step is carried out, decided from the graph before anything runs.

The largest part of the forward that memory holds stays saved; what is before it is computed again by segments (engine/segments.py),
cut where boundaries and the largest segment together are smallest. Nothing is computed again that need not be.

    seconds ≥ Σ over launches of max(bytes / bytes_per_second, FLOPs / flops_per_second) + launch
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import torch

from fastbn.engine import segments, traffic
from fastbn.engine.graph import Region, Shape
from fastbn.engine.occupied import Network, Occupied
from fastbn.engine.segments import Recompute
from fastbn.errors import MachineError
from fastbn.training.devices import GB, SPARE, Device

STORED = {"mixed": (torch.float16, torch.bfloat16), "bf16": (torch.bfloat16, torch.bfloat16)}  # activations and gradients
MULTIPLIED = {  # products an algorithm makes for each of the convolution's own
    "Winograd F(2×2, 3×3)": 4 / 9,
    "Winograd F(4×4, 3×3)": 1 / 4,
    "rolling rows": 4 / 3,
}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes: what is there between steps, and a step's peak on top, of which `saved` waits for the backward."""

    weights: int  # parameters, buffers, the engine's packed copies of frozen ones
    optimizer: int  # the flat vector, its gradient, its states
    data: int
    step: int
    saved: int

    @property
    def peak(self) -> int:
        return self.weights + self.optimizer + self.data + self.step


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a step is carried out, what it takes, and what it may take."""

    batch: int
    bn_batch: int  # images that share their statistics: the batch, or a slice of it
    recompute: Recompute | None
    memory: Memory
    budget: int
    seconds: float  # at least
    again: float  # FLOPs computed again, as a share of the step's own

    def lines(self, device: Device) -> list[str]:
        """What --explain prints of it."""
        m, share = self.memory, f"{self.again:.0%} of a step's arithmetic"
        how = "the forward saves all that the backward reads: it fits"
        if self.recompute is not None:
            kept = f", the last {_gb(self.recompute.kept)} saved" if self.recompute.kept else ""
            how = f"raw outputs computed again in segments of {_gb(self.recompute.segment)}{kept}: {share} more"
        slices = f", BatchNorm over slices of {self.bn_batch:,} (another model than BatchNorm over the batch)"
        return [
            f"batch {self.batch:,}{slices if self.bn_batch < self.batch else ''}; {how}",
            f"memory {_gb(m.peak)} of {_gb(self.budget)} at the peak: saved for the backward {_gb(m.saved)}, the rest of a step "
            f"{_gb(m.step - m.saved)}, weights {_gb(m.weights)}, optimizer {_gb(m.optimizer)}, data {_gb(m.data)}",
            f"time   at least {self.seconds * 1e3:,.{0 if self.seconds > 0.1 else 2}f} ms a step, at most "
            f"{self.batch / self.seconds:,.0f} images/s ({device.source})",
        ]


class Planner:
    """Plans steps of a network on a device. `data`: bytes of the data set that lie there."""

    def __init__(self, network: Network, image: tuple[int, int, int], precision: str, device: Device, optimizer: str, data: int = 0):
        self._network, self._image, self._device, self._data = network, image, device, data
        self._dtypes = STORED.get(precision, (torch.float32, torch.float32))
        self._flops = device.flops_per_second[precision]
        self._vectors = {"sgd": 3, "adam": 4}[optimizer]
        self.budget = int(device.memory * (1 - SPARE))

    def plan(self, batch: int, bn_batch: int | None = None, budget: int | None = None) -> Plan:
        """The plan that computes least again. Raises MachineError where not even segments of one block fit."""
        budget = self.budget if budget is None else budget
        at_once = min(batch, bn_batch or batch)
        whole = self._plan(batch, at_once, None, budget)
        if whole.memory.peak <= budget:
            return whole
        least = self._plan(batch, at_once, self._cut(at_once, 0), budget)
        if least.memory.peak > budget:
            needs = f"needs {_gb(least.memory.peak)} with every block computed again ({_gb(whole.memory.peak)} with none)"
            fits = self.largest(budget)
            remedy = f"the largest batch that fits is {fits:,}" if fits else "not even one image fits"
            raise MachineError(
                f"a step of {batch:,} images {needs}, and {self._device.name} has {_gb(budget)} for it; {remedy}, or give --bn-batch"
            )
        low, high, found = 0, self._saved(at_once).saved, least
        for _ in range(8):  # to a 256th: kept as much as fits
            kept = (low + high) // 2
            tried = self._plan(batch, at_once, self._cut(at_once, kept), budget)
            if tried.memory.peak <= budget:
                low, found = kept, tried if tried.again <= found.again else found
            else:
                high = kept
        return found

    def smaller(self, plan: Plan) -> Plan:
        """The next plan below one that ran out of memory in spite of itself: at four fifths of its peak. Raises MachineError as `plan`."""
        return self.plan(plan.batch, plan.bn_batch, int(0.8 * plan.memory.peak))

    def largest(self, budget: int | None = None) -> int:
        """The largest batch that fits, everything computed again that can be; 0 if none does."""
        budget = self.budget if budget is None else budget

        def fits(n: int) -> bool:
            return self._plan(n, n, self._cut(n, 0), budget).memory.peak <= budget

        if not fits(1):
            return 0
        low = 1
        while low < 2**24 and fits(2 * low):
            low *= 2
        high = 2 * low
        while high - low > max(1, low // 64):
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _plan(self, batch: int, at_once: int, recompute: Recompute | None, budget: int) -> Plan:
        step = self._occupied(at_once, recompute)
        memory = Memory(
            self._network.stored_bytes + self._network.packed_bytes(self._dtypes),
            self._vectors * 4 * self._network.trained,
            self._data,
            step.peak,
            step.saved,
        )
        seconds, flops = self._cost(at_once)
        again = step.flops_again / flops
        seconds += step.flops_again * self._multiplied() / self._flops
        return Plan(batch, at_once, recompute, memory, budget, seconds * batch / at_once, again)

    def _occupied(self, n: int, recompute: Recompute | None) -> Occupied:
        return self._network.occupied(self._shape(n), self._dtypes, recompute)

    @functools.lru_cache(8)  # noqa: B019 (as long-lived as the planner)
    def _saved(self, n: int) -> Occupied:
        return self._occupied(n, None)

    def _shape(self, n: int) -> Shape:
        return (n, *self._image)

    def _cut(self, n: int, kept: int) -> Recompute:
        """The segments under which boundaries and the largest segment take least, of halvings of the whole."""
        size, best = self._dtypes[0].itemsize, (math.inf, Recompute(1, kept))
        region, shapes = self._regions(n)[0]
        held = segments.raw_bytes(region, shapes, size)
        for halvings in range(12):
            policy = Recompute(max(1, sum(held) >> halvings), kept)
            spans = segments.spans(region, shapes, size, policy)
            largest = max((sum(held[i] for i in span) for span in spans), default=0)
            entering = sum(math.prod(shapes[region.joins[span.start - 1].value]) * size for span in spans if span.start)
            best = min(best, (largest + entering, policy), key=lambda pair: pair[0])
        return best[1]

    def _regions(self, n: int) -> list[tuple[Region, dict[int, Shape]]]:
        """With the shapes of their values, the one that holds most first."""
        found = self._network.shapes(self._shape(n))
        return sorted(found, key=lambda pair: -sum(segments.raw_bytes(pair[0], pair[1], 1)))

    def _cost(self, n: int) -> tuple[float, int]:
        """Seconds that a step can't be done under, and its FLOPs."""
        seconds, flops = 0.0, 0
        for region, shapes in self._regions(n):
            a, g = (dtype.itemsize for dtype in self._dtypes)
            case = traffic.Case(region, tuple(shapes[i] for i in range(region.inputs)), a, g)
            plan = traffic.fused(case)
            for each in itertools.chain(plan.forward, plan.backward):
                cost = dataclasses.replace(each.cost, flops=int(each.cost.flops * self._multiplied()))
                seconds += traffic.roofline(cost, self._device.bytes_per_second, self._flops) + self._device.launch * cost.launches
                flops += each.cost.flops
        return seconds, max(flops, 1)

    @functools.cache  # noqa: B019
    def _multiplied(self) -> float:
        """Products made for each of the convolutions' own, on average."""
        own = made = 0.0
        for region, shapes in self._regions(1):
            for join in region.joins:
                for conv in join.convs:
                    flops = math.prod(conv.weight_shape) * math.prod(shapes[join.value][2:])
                    own += flops
                    made += flops * MULTIPLIED.get(self._network.engine.algorithm(conv), 1)
        return made / own if own else 1.0


def _gb(size: float) -> str:
    return f"{size / GB:,.3g} GB" if size >= 0.1 * GB else f"{size / 1e6:,.3g} MB"
