"""A batch in which each sample has a patch of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastbn.engine.batchnorm import uses_batch
from fastbn.engine.fuse import Fused, fused_forward
from fastbn.engine.program.served import Apart, ServedProgram, TaskBatch
from fastbn.engine.region import FusedRegion
from fastbn.errors import UsageError

if TYPE_CHECKING:
    from fastbn.patches.switch import Patches

TOGETHER = "together"


class Serving:
    """Carries out `Patches.forward`. Keeps each region's vectors of every task."""

    def __init__(self, patches: Patches):
        self._patches = patches
        self._fused: Fused | None = None
        self._vectors: dict[int, tuple[FusedRegion, Tensor]] = {}
        self._changed: dict[str, dict[str | None, Tensor]] | None = None
        self.how = ""

    def forget(self) -> None:
        """Forget what was made of the patches: they are others now, or lie elsewhere."""
        self._vectors.clear()
        self._changed = None

    def forward(self, x: Tensor, tasks: list[str | None]) -> Any:
        model = self._patches.model
        if not isinstance(x, Tensor) or x.dim() == 0 or len(x) != len(tasks) or not tasks:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(f"a batch needs a task for each sample: got {len(tasks)} tasks for {shape}")
        if any(module.training for module in model.modules()):
            raise UsageError("Patches.forward serves a network in evaluation; call .eval() first")
        # outside inference mode, in which a tensor does not tell that it was written over
        with self._patches.use(None), torch.inference_mode(False), torch.no_grad():
            x = x.clone() if x.is_inference() else x
            try:
                outputs = self._together(x, tasks)
                self.how = TOGETHER
            except Apart as apart:
                self.how = f"task by task: {apart}"
                outputs = self._task_by_task(x, tasks)
        return outputs

    def _together(self, x: Tensor, tasks: list[str | None]) -> Any:
        model = self._patches.model
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and uses_batch(module):
                raise Apart(f"{name} takes the batch's statistics")
        fused = fused_forward(model)
        if fused is None:
            self._fused = fused = self._fused or Fused(model, "auto")
        why, program, tensors = fused.prepared((x,), {})
        if program is None or program.module is None:
            raise Apart(why or "the network runs stock on this device")
        if not program.graph.regions:
            raise Apart("no convolution with a frozen weight meets a BatchNorm; fastbn.freeze the network")
        number: dict[str | None, int] = {name: i for i, name in enumerate([None, *self._patches.names])}
        each = torch.tensor([number[task] for task in tasks], dtype=torch.int32, device=x.device)
        rows = {i: (each == i).nonzero()[:, 0] for i in sorted({number[task] for task in tasks})}
        named = dict(model.named_parameters()) | dict(model.named_buffers())
        changed = {
            id(named[name]): {number[task]: value for task, value in values.items()}
            for name, values in self._differing().items()
        }
        batch = TaskBatch(each, rows, changed, self._vectors_of)
        return ServedProgram(program.module, batch).run(*tensors)

    def _task_by_task(self, x: Tensor, tasks: list[str | None]) -> Any:
        """Return the same, one task after another: each on its own samples."""
        count, whole = len(tasks), None
        for name in dict.fromkeys(tasks):
            rows = torch.tensor([i for i, task in enumerate(tasks) if task == name], device=x.device)
            with self._patches.use(name):
                parts, form = pytree.tree_flatten(self._patches.model(x[rows]))
            if whole is None:
                whole = [t.new_empty((count, *t.shape[1:])) if isinstance(t, Tensor) else t for t in parts]
            for all_rows, part in zip(whole, parts, strict=True):
                if isinstance(part, Tensor):
                    all_rows[rows] = part
        assert whole is not None
        return pytree.tree_unflatten(whole, form)

    def _differing(self) -> dict[str, dict[str | None, Tensor]]:
        """Return, by name, the tensors that are not the same in the base and all patches, as each has
        them."""
        if self._changed is None:
            patches = self._patches
            by_task: dict[str | None, dict[str, Tensor]] = {}
            if patches.names:
                by_task = {name: patches.values(name) for name in [None, *patches.names]}
            differing: dict[str, dict[str | None, Tensor]] = {}
            for name, base in by_task.get(None, {}).items():
                by_patch = {task: values[name] for task, values in by_task.items()}
                if not all(torch.equal(base, value) for value in by_patch.values()):
                    differing[name] = by_patch
            self._changed = differing
        return self._changed

    def _vectors_of(self, region: FusedRegion) -> Tensor:
        """Return a region's vectors of the base and every patch, (4, T, channels)."""
        kept = self._vectors.get(id(region))
        if kept is None:
            patches = self._patches
            each = []
            for name in [None, *patches.names]:
                with patches.use(name):
                    each.append(region.eval_vectors())
            kept = self._vectors[id(region)] = region, torch.stack(each, 1)
        return kept[1]
