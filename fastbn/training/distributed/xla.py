"""Training on XLA: a step as one compiled graph, and the processes of a launch, one a chip."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastbn.data.feed import Inputs
from fastbn.errors import UsageError
from fastbn.machine import xla
from fastbn.machine.environment import place
from fastbn.training.distributed.ranks import ALONE, PREPARATION, Ranks

T = TypeVar("T")


class OneGraph:
    """Takes steps by `compute`, each as one graph, the same one for every batch of a size. state: what a
    step may move of the model."""

    def __init__(self, compute: Callable[[Inputs, Tensor, Any], None], state: list[Tensor]):
        self._compute, self._state = compute, state

    def __call__(self, inputs: Inputs, lr: Tensor, totals: Any) -> None:
        xla.carry_out()  # what comes before a step is no part of its graph
        self._compute(inputs, lr, totals)
        # views of the flat vectors are else taken anew by whatever reads them next, in its graph
        for tensor in self._state:
            torch._sync(tensor)  # type: ignore[attr-defined]
        xla.carry_out()


class Chips(Ranks):
    """The processes that torch_xla's launcher started, one a chip. What they tell each other goes over XLA's
    collectives, the step's one all-reduce in its graph; nobody's patience ends there, so a lost chip is the
    TPU runtime's to report."""

    def _everybody(self, value: T) -> list[T]:
        from torch_xla.core import xla_model

        with self.waiting("the run's preparation", PREPARATION):
            return [pickle.loads(said) for said in xla_model.rendezvous("fastbn", pickle.dumps(value))]

    def told(self, value: T) -> T:
        return self._everybody(value if self.first else None)[0]  # type: ignore[return-value]

    @property
    def backend(self) -> str:
        return "torch_xla"

    def sum(self, tensor: Tensor) -> Tensor:
        from torch_xla.core import xla_model

        summed: Tensor = tensor.copy_(xla_model.all_reduce(xla_model.REDUCE_SUM, tensor))
        return summed

    def _first_ones(self, flat: Tensor) -> Tensor:
        from torch_xla.core import xla_model

        first: Tensor = xla_model.all_gather(flat.view(1, -1))[0]
        return first


def ranks(timeout: float) -> Ranks:
    """Return the chips that train together, or ALONE."""
    here = place()
    xla.device()
    from torch_xla import runtime

    if runtime.world_size() == 1 and here.count == 1:
        return ALONE
    if runtime.world_size() != here.count:
        raise UsageError(
            f"--device xla was started as rank {here.rank} of {here.count} by something else than "
            "torch_xla's launcher; start it by "
            "python -m fastbn.train_xla, with the arguments of python -m fastbn.train"
        )
    return Chips(here.rank, here.count, timeout)
