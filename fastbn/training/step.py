"""One training step: load -> forward -> loss -> backward -> update, with nothing read back from the
device."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastbn.data.feed import Feed, Inputs
from fastbn.engine import fused_forward
from fastbn.engine.context import recomputing
from fastbn.engine.logits import logits_of
from fastbn.engine.triton import step_kernels
from fastbn.errors import is_out_of_memory
from fastbn.machine import devices
from fastbn.planning.plan import Planner
from fastbn.recipe import ResolvedRecipe
from fastbn.training.cuda_graph import Captured
from fastbn.training.distributed.exchange import Exchange
from fastbn.training.distributed.ranks import ALONE, Ranks
from fastbn.training.state.custom import OWN, Custom, TorchOptimizer
from fastbn.training.state.flat import Flat
from fastbn.training.state.optimizer import Optimizer
from fastbn.training.state.running_statistics import Running
from fastbn.training.totals import StepResult, Totals


class TrainingStep:
    """The model, its flat vector and its optimizer, ready to take batches. `plan` says how; None: as it
    comes, all at once."""

    def __init__(
        self,
        model: nn.Module,
        feed: Feed,
        recipe: ResolvedRecipe,
        ranks: Ranks = ALONE,
        planner: Planner | None = None,
        say: Callable[[str], None] = lambda line: None,
        custom: Custom = OWN,
    ):
        custom.check(feed.device)
        self.model, self.feed = model, feed
        self.exchange = Exchange(ranks, feed.device)
        self.recipe, self._planner, self._say = recipe, planner, say
        self.plan = None
        if planner is not None:
            batch = min(recipe.batch_size, len(feed))  # which may hold fewer
            self.plan = planner.plan(max(1, batch // ranks.count), recipe.bn_batch)
        self.flat, self.running = Flat(model), Running(model)
        self.custom = custom
        self.optimizer: Optimizer | TorchOptimizer
        if custom.optimizer is None:
            self.optimizer = Optimizer(recipe, self.flat.vector, self.flat.mask)
        else:
            self.optimizer = TorchOptimizer(self.flat, custom.optimizer)
        self._shared = False
        self._take = self._taking()

    def __call__(
        self, inputs: Inputs, lr: float, totals: Totals, images: int | None = None, heard: int | None = None
    ) -> None:
        """Train on one of the feed's batches. A loss, gradient or update that is not finite withholds the
        update, and `totals` knows. A step that memory does not hold is taken again by the next smaller plan;
        MachineError where there is none.

        Of a batch of `images` that ranks share, `inputs` are this rank's; `heard`: the signal that asks it to
        stop, if one did."""
        count = len(inputs[0])
        inputs = inputs if count else self._stand_in
        self.exchange.begin(len(inputs[0]), count, count if images is None else images, heard)
        rate = devices.number(lr, torch.float64, self.feed.device)
        while (reason := self._tried(inputs, rate, totals)) is not None:
            self._shrink(reason)
        totals.images += count if images is None else images

    def dissolve(self) -> None:
        """Give the model's tensors storage of their own again."""
        if isinstance(self.optimizer, TorchOptimizer):
            self.optimizer.dissolve()
        self.flat.dissolve()
        self.running.dissolve()
        del self._take  # with what it recorded, which a cycle through this step would keep

    def _taking(self) -> Callable[[Inputs, Tensor, Totals], None]:
        if self.feed.device.type == "xla":
            from fastbn.training.distributed.xla import OneGraph

            return OneGraph(self._compute, [*self.model.parameters(), *self.model.buffers()])
        return (
            Captured(self._compute, self.feed.device)
            if not self.custom.names() and _capturable(self.model, self.feed.device)
            else self._compute
        )

    def _tried(self, inputs: Inputs, lr: Tensor, totals: Totals) -> str | None:
        """Take the step; where memory ran out undo what it did, and return what the allocator said."""
        self._shared = False
        if self._planner is not None:
            self.running.keep()
        try:
            self._take(inputs, lr, totals)
            return None
        except (RuntimeError, MemoryError) as error:
            if self._planner is None or self._shared or self.recipe.sync_bn or not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        self.running.put_back()
        for p in self.flat.parameters:
            p.grad = None
        return reason

    def _shrink(self, reason: str) -> None:
        """Go over to the next smaller plan. By now the error is gone, and with it the frames that held the
        step's tensors."""
        assert self._planner is not None and self.plan is not None
        self._take = self._compute  # the graphs so far go, and their memory
        devices.free_unused(self.feed.device)
        self.plan = self._planner.smaller(self.plan)
        self._take = self._taking()
        self._say(f"fastbn: out of memory ({reason}); the same step again by a smaller plan: {self.plan.how}")

    def _compute(self, inputs: Inputs, lr: Tensor, totals: Totals) -> None:
        result = self._gradient(inputs)
        self._shared = self.exchange.ranks.count > 1  # from here on no rank can try again alone
        result = self.exchange.sum(self.flat.gradient, result)
        moved = self.optimizer.update(self.flat.vector, self.flat.gradient, lr, torch.isfinite(result.loss))
        totals.add(result)
        totals.finite &= moved

    def _gradient(self, inputs: Inputs) -> StepResult:
        """Run forward and backward; with --bn-batch slice by slice, each with statistics of its own, their
        gradients added up."""
        n, recompute = len(inputs[0]), self.plan.recompute if self.plan else None
        slices = -(-n // (self.recipe.bn_batch or n))
        results: list[StepResult] = []
        for part in zip(*(given.tensor_split(slices) for given in inputs), strict=True):
            x, labels = self.feed.load(*part)
            x = self.custom.augmented(x)
            with recomputing(recompute):
                logits = logits_of(self.model(x), len(self.feed.classes))
            loss = self.custom.loss_of(at_least_float32(logits), labels)
            loss = loss if slices == 1 else loss * (len(labels) / n)  # its part in the batch's mean
            self.exchange.weighed(loss).backward()
            self.flat.gather(add=bool(results))
            results.append(StepResult.of(logits, labels, loss))
        loss, correct = (
            functools.reduce(torch.add, figures)
            for figures in ([f.loss for f in results], [f.correct for f in results])
        )
        return StepResult(loss, correct, n)

    @functools.cached_property
    def _stand_in(self) -> Inputs:
        """Return a sample that counts for nothing, for a rank which the ragged last batch leaves without
        one: with it BatchNorm has a batch, and the rank takes part in whatever the others wait for."""
        return tuple(
            given[:1]
            for given in next(self.feed.batches(self.recipe.batch_size, 0, self.exchange.ranks.share))
        )


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits in float32, or in float64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _capturable(model: nn.Module, device: torch.device) -> bool:
    """Return whether a step is launches alone, nothing of it decided by the host: by the Triton engine, on
    CUDA."""
    fused = fused_forward(model)
    return (
        device.type == "cuda"
        and fused is not None
        and fused.engine in ("auto", "triton")
        and step_kernels.usable(device)
    )
