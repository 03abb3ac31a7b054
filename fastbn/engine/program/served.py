"""A program run in evaluation on a batch whose samples belong to different tasks: networks that share every
frozen convolution and differ in what a patch changes.

A region reads each weight once, and every sample's activations are formed by its own task's scale and shift.
Another module that a patch changes, a head say, is run task by task on its samples; the rest once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastbn.engine.program.build import Attribute
from fastbn.engine.region import FusedRegion
from fastbn.graph.regions import Unfit


class Apart(Exception):
    """These tasks can't be carried out together: why."""


@dataclasses.dataclass(frozen=True)
class TaskBatch:
    """A batch's tasks.

    tasks: (N,) int32, on the batch's device, each sample's task as the vectors number them
    rows: by task, the samples that are its own (int64); only those that occur
    changed: by a tensor's id, how each of those tasks has it: what differs between them
    vectors: a region's (4, T, channels), as FusedRegion.eval_vectors makes a task's
    """

    tasks: Tensor
    rows: Mapping[int, Tensor]
    changed: Mapping[int, Mapping[int, Tensor]]
    vectors: Callable[[FusedRegion], Tensor]


class ServedProgram(fx.Interpreter):
    """Runs a program's module on such a batch. Raises Apart where that can't be done."""

    def __init__(self, module: fx.GraphModule, batch: TaskBatch):
        super().__init__(module)
        self.extra_traceback = False  # else what is raised says which node it came from
        self._batch = batch

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        batch = self._batch
        if isinstance(module, FusedRegion):
            if any(id(conv.weight) in batch.changed for conv, _ in module.pairs):
                raise Apart("a patch changes a convolution's weight")
            try:
                return module.served(args, batch.tasks, batch.vectors(module))
            except Unfit as unfit:
                raise Apart(str(unfit)) from None
        if isinstance(module, Attribute):
            value = super().call_module(target, args, kwargs)
            if id(value) in batch.changed:
                raise Apart("the network's own forward reads a tensor that a patch changes")
            return value
        held = [*module.named_parameters(), *module.named_buffers()]
        changed = {name: batch.changed[id(t)] for name, t in held if id(t) in batch.changed}
        if not changed:
            return super().call_module(target, args, kwargs)
        return self._by_task(module, changed, args, kwargs)

    def _by_task(
        self, module: nn.Module, changed: dict[str, Mapping[int, Tensor]], args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        """A module's output, each task's samples by its own tensors."""
        count, whole = len(self._batch.tasks), None
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if any(t.dim() == 0 or len(t) != count for t in given):
            raise Apart("a module that a patch changes does not read one row a sample")
        for task, rows in self._batch.rows.items():
            own = {name: values[task] for name, values in changed.items()}
            of_task = lambda value, rows=rows: value[rows] if isinstance(value, Tensor) else value  # noqa: E731
            part = torch.func.functional_call(
                module, own, tuple(map(of_task, args)), {key: of_task(v) for key, v in kwargs.items()}
            )
            if not isinstance(part, Tensor) or part.dim() == 0 or len(part) != len(rows):
                raise Apart("a module that a patch changes does not make one row a sample")
            whole = part.new_empty((count, *part.shape[1:])) if whole is None else whole
            whole[rows] = part
        assert whole is not None
        return whole
