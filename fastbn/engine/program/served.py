"""A program run in evaluation on a batch whose samples belong to different tasks: networks that share every
frozen convolution and differ in what a patch changes.

A region reads each weight once, and every sample's activations are formed by its own task's scale and shift.
Another module that a patch changes, a head say, and what the network's own forward does with such a tensor,
is run task by task on its samples; the rest once."""

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
    """These tasks can't be run together; the message says why."""


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


@dataclasses.dataclass(frozen=True)
class ByTask:
    """A value that belongs to no sample, and that is each task's own: a parameter, or what is computed of
    it."""

    values: Mapping[int, Any]


class ServedProgram(fx.Interpreter):
    """Runs a program's module on such a batch. Raises Apart where that can't be done."""

    def __init__(self, module: fx.GraphModule, batch: TaskBatch):
        super().__init__(module)
        self.extra_traceback = False  # else what is raised says which node it came from
        self._batch = batch
        self._of_batch: set[fx.Node] = set()  # nodes that depend on the samples
        for node in module.graph.nodes:
            if node.op == "placeholder" or not self._of_batch.isdisjoint(node.all_input_nodes):
                self._of_batch.add(node)

    def run_node(self, n: fx.Node) -> Any:
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        by_task = any(isinstance(self.env[node], ByTask) for node in n.all_input_nodes)
        if by_task and (n.op == "output" or isinstance(module, FusedRegion)):
            raise Apart("a task's own value goes where each sample's is expected")
        if isinstance(module, FusedRegion):
            return self._region(module, self.fetch_args_kwargs_from_env(n)[0])
        if isinstance(module, Attribute):
            value = super().run_node(n)
            return ByTask(self._batch.changed[id(value)]) if id(value) in self._batch.changed else value
        held = [] if module is None else [*module.named_parameters(), *module.named_buffers()]
        changed = {name: self._batch.changed[id(t)] for name, t in held if id(t) in self._batch.changed}
        return self._by_task(n, module, changed) if changed or by_task else super().run_node(n)

    def _region(self, module: FusedRegion, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
        if any(id(conv.weight) in self._batch.changed for conv, _ in module.pairs):
            raise Apart("a patch changes a convolution's weight")
        try:
            return module.served(inputs, self._batch.tasks, self._batch.vectors(module))
        except Unfit as unfit:
            raise Apart(str(unfit)) from None

    def _by_task(
        self, n: fx.Node, module: nn.Module | None, changed: dict[str, Mapping[int, Tensor]]
    ) -> Tensor | ByTask:
        """Return what a node makes, each task's samples by its own values."""
        parts = {}
        for task, rows in self._batch.rows.items():
            given = {node: self._given(node, task, rows) for node in n.all_input_nodes}
            taken = [t for node, t in given.items() if node in self._of_batch]
            before = [t._version for t in taken]
            args: Any = fx.map_arg(n.args, given.__getitem__)
            kwargs: Any = fx.map_arg(n.kwargs, given.__getitem__)
            if module is not None:
                tensors = {name: values[task] for name, values in changed.items()}
                parts[task] = torch.func.functional_call(module, tensors, args, kwargs)
            else:
                parts[task] = getattr(super(), n.op)(n.target, args, kwargs)
            if [t._version for t in taken] != before:
                raise Apart(f"{n.name} writes over what it reads")
        if n not in self._of_batch:
            return ByTask(parts)
        return self._joined(n, parts)

    def _given(self, node: fx.Node, task: int, rows: Tensor) -> Any:
        """Return a node's value as a task's samples have it."""
        value = self.env[node]
        if isinstance(value, ByTask):
            return value.values[task]
        if node not in self._of_batch:
            return value
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != len(self._batch.tasks):
            raise Apart(f"{node.name}, which meets what a patch changes, has not one row a sample")
        return value[rows]

    def _joined(self, n: fx.Node, parts: Mapping[int, Any]) -> Tensor:
        """Return the rows of all samples, put together from each task's."""
        whole: Tensor | None = None
        for task, part in parts.items():
            rows = self._batch.rows[task]
            if not isinstance(part, Tensor) or part.dim() == 0 or len(part) != len(rows):
                raise Apart(f"{n.name}, which a patch changes, does not make one row a sample")
            if whole is None:
                whole = part.new_empty((len(self._batch.tasks), *part.shape[1:]))
            whole[rows] = part
        assert whole is not None
        return whole
