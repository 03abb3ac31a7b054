"""The training steps that are measured: a user's loop on stock PyTorch or fastbn, and fastbn's own captured
step.

Every loop takes the paper's SGD step. torch.float16 under autocast has a loss scale that never changes, so
that the host need not look at the gradient: it favours stock."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.records.rows import Row
from bench.suite.cases import Case, feed
from bench.suite.clock import Call, captured
from fastbn import freeze, fuse
from fastbn.choices import PRECISIONS
from fastbn.engine.context import mixed
from fastbn.models.resnet import BasicBlock, Bottleneck
from fastbn.recipe import Recipe
from fastbn.training.replicas import lanes
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals

AUTOCAST = {"amp-fp16": torch.float16, "amp-bf16": torch.bfloat16}
WHOLE = 56  # the deepest network that is compiled whole; on a CPU by blocks it is slower than eager
# kinds of blocks × cases; a provider that reaches it raises, where torch would go on eagerly in silence
RECOMPILE_LIMIT = 64
SCALE = 1024.0  # of float16's loss


@dataclasses.dataclass
class Ready:
    """A network and its training step."""

    model: nn.Module
    step: Call
    forward: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer
    start: dict[nn.Parameter, Tensor]  # what trains, as it was drawn

    @torch.no_grad()
    def reset(self) -> None:
        """Put back what trains as it was drawn, without momentum: as if no step had been taken.

        In place, for a graph's sake.
        """
        for parameter, drawn in self.start.items():
            parameter.copy_(drawn)
        for state in self.optimizer.state.values():
            state["momentum_buffer"].zero_()


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device, capturing: bool = False) -> Iterator[None]:
    """Compute what it encloses in this precision: fp32 is never TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    with contextlib.ExitStack() as stack:
        if precision == "mixed":
            # the interpreter's bfloat16 multiplies bit patterns
            stack.enter_context(mixed(torch.bfloat16 if device.type == "cuda" else torch.float32))
        elif precision in AUTOCAST:
            dtype = AUTOCAST[precision]
            stack.enter_context(torch.autocast(device.type, dtype, cache_enabled=not capturing))
        yield


@dataclasses.dataclass(frozen=True)
class Provider:
    """One way to take a step of a case."""

    name: str
    trains: str  # "all" or "bn"
    engine: str = "stock"
    layout: torch.memory_format = torch.channels_last  # of stock's weights, and of a loop's images
    way: str = "eager"  # or "compiled", "graph", and fastbn's "fit"
    precision: str = "fp32"  # or "tf32", "amp-fp16", "amp-bf16" (any's, by autocast); "mixed" is fastbn's own
    replicas: int | None = None  # so many networks at a time, by fastbn's fit

    @property
    def stock(self) -> bool:
        return self.engine == "stock"

    def row(self, level: str, case: Case) -> Row:
        """Return its row of a case, nothing measured yet."""
        return Row.of(level, case, self.name, self.trains, precision=self.precision)

    def network(self, case: Case, device: torch.device, seed: int = 0) -> nn.Module:
        """Return the case's network on this device, frozen but for what trains, run by its engine."""
        model = freeze(case.network(seed), self.trains).to(device)
        if self.stock:
            return model.to(memory_format=self.layout)  # type: ignore[call-overload]
        return fuse(model, self.engine)

    def step(self, case: Case, device: torch.device) -> Call:
        """Return a step of this case by any way, fit's too."""
        return self.fit(case, device) if self.way == "fit" else self.make(case, device).step

    def make(self, case: Case, device: torch.device) -> Ready:
        """Return a user's own step on this case's images, not yet taken once; as a graph the whole step,
        recorded after three that were not."""
        model, graph = self.network(case, device), self.way == "graph"
        run = _compiled(model, case) if self.way == "compiled" else model
        x, labels = case.inputs(device)
        x = x.contiguous(memory_format=self.layout)
        start = {p: p.detach().clone() for p in model.parameters() if p.requires_grad}
        optimizer = torch.optim.SGD(list(start), 0.1, 0.9, weight_decay=1e-4)

        def forward() -> Tensor:
            torch.backends.cudnn.benchmark = self.stock  # at its best; fastbn's bits do not depend on a race
            with arithmetic(self.precision, device, graph):
                out: Tensor = run(x)
                return out

        def step() -> None:
            optimizer.zero_grad()
            loss = F.cross_entropy(forward().float(), labels)
            if self.precision == "amp-fp16":
                (SCALE * loss).backward()
                torch._foreach_mul_([p.grad for p in start if p.grad is not None], 1 / SCALE)
            else:
                loss.backward()
            optimizer.step()

        return Ready(model, captured(step, device, 3) if graph else step, forward, optimizer, start)

    def fit(self, case: Case, device: torch.device) -> Callable[[], Totals]:
        """Return fastbn.fit's own step, batch and augmentation included, and what it has counted so far; of
        replicas, one network per seed, side by side as fit_replicas takes them.

        amp-fp16, which no recipe offers, comes by the same autocast that bf16 has there."""
        kind = self.precision.removeprefix("amp-")
        kind = kind if kind in PRECISIONS else "auto"
        recipe, steps = Recipe(batch_size=case.batch_size, precision=kind).resolved(160), []
        for seed in range(self.replicas or 1):
            data = feed(2 * case.batch_size, case.size, device, seed)
            step = TrainingStep(self.network(case, device, seed), data, recipe)
            steps.append((step, itertools.cycle(data.batches(case.batch_size)), Totals.zero(device)))
        one = contextlib.nullcontext([contextlib.nullcontext()])
        with lanes(device, self.replicas) if self.replicas else one as places:

            def run() -> Totals:
                with arithmetic(self.precision, device, capturing=True):
                    for place, (step, batches, totals) in zip(places, steps, strict=True):
                        with place:
                            step(next(batches), 0.1, totals)
                return totals

            return run


def _compiled(model: nn.Module, case: Case) -> Callable[[Tensor], Tensor]:
    """Compile the whole network, or its blocks: one compilation serves all blocks of a shape."""
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    if case.depth <= WHOLE:
        whole: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)
        return whole
    for module in model.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            module.compile(dynamic=False)
    return model
