"""The plan: how a step runs, decided from the graph before anything runs.

The largest part of the forward that memory holds stays saved; what is before it is recomputed by segments
(engine/recomputation.py), cut where boundaries and the largest segment together are smallest. Nothing is
recomputed that need not be."""

from __future__ import annotations

import dataclasses
import functools
import math

from fastbn.choices import STATES
from fastbn.engine import recomputation
from fastbn.engine.recomputation import Recompute
from fastbn.errors import MachineError
from fastbn.graph.regions import Region, Shape
from fastbn.planning import roofline
from fastbn.planning.data_sheets import GB, SPARE
from fastbn.planning.precision import storage
from fastbn.planning.step_memory import NetworkMemory


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """A step's bytes: what is there between steps, and a step's peak on top, of which `saved` waits for the
    backward."""

    weights: int  # parameters, buffers, the engine's packed copies of frozen ones
    optimizer: int  # the flat vector, its gradient, its states
    data: int
    step: int
    saved: int

    @property
    def peak(self) -> int:
        """Return the bytes at a step's peak, with all that lies there between steps."""
        return self.weights + self.optimizer + self.data + self.step


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a step runs, what it takes, and what it may take."""

    batch: int
    bn_batch: int  # images that share their statistics: the batch, or a slice of it
    recompute: Recompute | None
    memory: StepMemory
    budget: int
    again: float  # FLOPs recomputed, as a share of the step's own

    @property
    def how(self) -> str:
        """Return a phrase for people: what is saved, and what is computed again."""
        if self.recompute is None:
            return "the forward saves all that the backward reads: it fits"
        kept = f", the last {gb(self.recompute.kept)} saved" if self.recompute.kept else ""
        return (
            f"raw outputs computed again in segments of {gb(self.recompute.segment)}{kept}: "
            f"{self.again:.0%} more arithmetic"
        )

    def __str__(self) -> str:
        m = self.memory
        slices = f", BatchNorm over slices of {self.bn_batch:,} (another model than BatchNorm over the batch)"
        return (
            f"batch {self.batch:,}{slices if self.bn_batch < self.batch else ''}; {self.how}; "
            f"{gb(m.peak)} of {gb(self.budget)} at the peak "
            f"({gb(m.saved)} saved for the backward, {gb(m.step - m.saved)} the rest of a step, "
            f"{gb(m.weights)} weights, "
            f"{gb(m.optimizer)} optimizer, {gb(m.data)} data)"
        )


class Planner:
    """A planner of a network's steps within `memory` bytes. image: (channels, height, width); data: bytes of
    the data set that lie there."""

    def __init__(
        self,
        network: NetworkMemory,
        image: tuple[int, int, int],
        precision: str,
        memory: int,
        optimizer: str = "sgd",
        data: int = 0,
    ):
        self.network, self.image, self._data = network, image, data
        self.dtypes = storage(precision)
        self._vectors = 2 + STATES[optimizer]  # γ and β, their gradient, the optimizer's states
        self.budget = int(memory * (1 - SPARE))

    def plan(self, batch: int, bn_batch: int | None = None, budget: int | None = None) -> Plan:
        """Return the plan that recomputes least. Raises MachineError where not even segments of one block
        fit."""
        budget = self.budget if budget is None else budget
        at_once = min(batch, bn_batch or batch)
        whole = self._plan(batch, at_once, None, budget)
        if whole.memory.peak <= budget:
            return whole
        least = self._plan(batch, at_once, self._cut(at_once, 0), budget)
        if least.memory.peak > budget:
            needs = (
                f"needs {gb(least.memory.peak)} with every block computed again "
                f"({gb(whole.memory.peak)} with none)"
            )
            fits = self.largest(budget)
            remedy = f"the largest batch that fits is {fits:,}" if fits else "not even one image fits"
            raise MachineError(
                f"a step of {batch:,} images {needs}, and there are {gb(budget)}; {remedy}, or give "
                "--bn-batch"
            )
        low, high, best = 0, whole.memory.saved, least
        for _ in range(8):  # to a 256th: kept as much as fits
            kept = (low + high) // 2
            tried = self._plan(batch, at_once, self._cut(at_once, kept), budget)
            if tried.memory.peak <= budget:
                low, best = kept, tried if tried.again <= best.again else best
            else:
                high = kept
        return best

    def smaller(self, plan: Plan) -> Plan:
        """Return the next plan below one that ran out of memory all the same: a step of four fifths.
        Raises MachineError as `plan`."""
        return self.plan(plan.batch, plan.bn_batch, plan.memory.peak - plan.memory.step // 5)

    def largest(self, budget: int | None = None) -> int:
        """Return the largest batch that fits, everything recomputed that can be; 0 if none does."""
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
        step = self.network.occupied(self._shape(at_once), self.dtypes, recompute)
        memory = StepMemory(
            self.network.stored_bytes + self.network.packed_bytes(self._shape(at_once), self.dtypes),
            self._vectors * 4 * self.network.trained,
            self._data,
            step.peak,
            step.saved,
        )
        return Plan(
            batch, at_once, recompute, memory, budget, step.flops_again / max(1, self._flops(at_once))
        )

    def _shape(self, n: int) -> Shape:
        return (n, *self.image)

    def _cut(self, n: int, kept: int) -> Recompute:
        """Return the segments under which boundaries and the largest segment take least, among halvings of
        the whole."""
        size, best = self.dtypes[0].itemsize, (math.inf, Recompute(1, kept))
        region, shapes = self.regions(n)[0]
        held = recomputation.raw_bytes(region, shapes, size)
        for halvings in range(12):
            policy = Recompute(max(1, sum(held) >> halvings), kept)
            spans = recomputation.spans(region, shapes, size, policy)
            largest = max((sum(held[i] for i in span) for span in spans), default=0)
            entering = sum(
                math.prod(shapes[region.joins[span.start - 1].value]) * size for span in spans if span.start
            )
            best = min(best, (largest + entering, policy), key=lambda pair: pair[0])
        return best[1]

    def regions(self, n: int) -> list[tuple[Region, dict[int, Shape]]]:
        """Return the regions with the shapes of their values for n images, the one that holds most first."""
        pairs = self.network.shapes(self._shape(n))
        return sorted(pairs, key=lambda pair: -sum(recomputation.raw_bytes(pair[0], pair[1], 1)))

    @functools.lru_cache(8)  # noqa: B019 (as long-lived as the planner)
    def _flops(self, n: int) -> int:
        """Return the FLOPs of a step's convolutions, forward and input gradients."""
        return sum(
            cost.flops
            for region, shapes in self.regions(n)
            for cost in roofline.costs(region, shapes, self.dtypes)
        )


def gb(size: float) -> str:
    """Return bytes as text in three digits: 20.2 GB, 44.5 MB."""
    return f"{size / GB:,.3g} GB" if size >= 0.1 * GB else f"{size / 1e6:,.3g} MB"
