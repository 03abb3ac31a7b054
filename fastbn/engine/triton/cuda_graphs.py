"""A region's walks as CUDA graphs: recorded once an input shape and state of the modules, replayed by every
later call.

At depth 866 a step of the walk is 1,732 launches, each a tenth of a millisecond of Python and a few
microseconds of GPU. A key's first call runs as it is, and compiles what is not yet compiled; nothing runs
twice, so warming up leaves no trace in any state.

What a forward left for its backward lies in the graphs' own memory. A recorded pair is therefore lent to a
forward, and comes back when autograd lets go of what was saved: after the backward, or when the result dies.
Overlapping forwards record pairs of their own."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastbn.engine import walk
from fastbn.engine.context import current
from fastbn.engine.executor import KEYS, ForwardResult, key_of, walked
from fastbn.engine.interface import Record
from fastbn.engine.walk import RegionGradients
from fastbn.errors import is_out_of_memory


class Recorder:
    """Records CUDA graphs, on a stream of its own (one that others use must not be captured) and in one
    pool of memory."""

    def __init__(self, device: torch.device):
        self._device, self._stream, self._pool = (
            device,
            torch.cuda.Stream(device),
            torch.cuda.graph_pool_handle(),
        )

    def __call__(self, launches: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        with torch.cuda.device(self._device), uncollected(), capture:
            launches()
        return graph.replay


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, no garbage is collected: a graph among it that is destroyed while another is captured spoils
    the capture."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _capturable(device: torch.device) -> bool:
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


class CudaGraphs:
    """The executor that replays: the recordings of one region, the latest states'."""

    def __init__(
        self,
        recorder: Callable[[torch.device], Record] = Recorder,
        usable: Callable[[torch.device], bool] = _capturable,
    ):
        self._recorder, self._usable = recorder, usable
        self._free: collections.OrderedDict[Any, list[GraphRecording]] = collections.OrderedDict()

    def forward(self, call: walk.Call, inputs: list[Tensor]) -> ForwardResult:
        """Run as walk.forward does, replayed where this call's like has been seen."""
        device = inputs[0].device
        if not current().recorded or not self._usable(device):
            return walked(call, inputs)
        key = key_of(call, inputs)
        if key not in self._free:
            self._free[key] = []
            while len(self._free) > KEYS:
                self._free.popitem(last=False)
            return walked(call, inputs)
        self._free.move_to_end(key)
        free = self._free[key]
        recorded = free.pop() if free else self._recorded(call, inputs)
        if recorded is None:
            return walked(call, inputs)
        lent = np.empty(1, np.uint8)
        weakref.finalize(lent, free.append, recorded).atexit = False
        outputs = recorded.forward(inputs)
        return ForwardResult(
            outputs, recorded.vectors, recorded.saved, recorded.call, recorded, torch.from_numpy(lent)
        )

    def _recorded(self, call: walk.Call, inputs: list[Tensor]) -> GraphRecording | None:
        """Record, or return None where memory does not hold it: nothing has run yet, and this call is walked,
        and all that follow."""
        try:
            return GraphRecording(call, inputs, self._recorder(inputs[0].device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self._free.clear()
        self._usable = lambda device: False
        first, last = call.region.convs[0].name, call.region.convs[-1].norm
        warnings.warn(
            f"fastbn launches {first} to {last} one by one: memory does not hold a recording of it too",
            stacklevel=2,
        )
        return None


class GraphRecording:
    """A forward and its backwards, one for each set of outputs that gradient comes from, in memory of
    their own."""

    def __init__(self, call: walk.Call, inputs: list[Tensor], record: Record):
        self.call = dataclasses.replace(call, batch=[])
        self._record = record
        self._inputs = [x.clone(memory_format=torch.preserve_format) for x in inputs]
        self._backwards: dict[tuple[bool, ...], Callable[[], None] | None] = {}
        self._gradients: dict[tuple[bool, ...], list[Tensor | None]] = {}
        self._found: dict[tuple[bool, ...], RegionGradients] = {}
        self._replay = record(self._forward)

    def _forward(self) -> None:
        self.call.batch.clear()
        self._made, self.vectors, self.saved = walk.forward(self.call, self._inputs)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Return the outputs, in fresh memory."""
        for held, x in zip(self._inputs, inputs, strict=True):
            held.copy_(x)
        self._replay()
        return [z.clone(memory_format=torch.preserve_format) for z in self._made]

    def backward(
        self, gradients: list[Tensor | None], vectors: Tensor, saved: list[Tensor]
    ) -> RegionGradients | None:
        """Run as walk.backward does on what the last forward left, in fresh memory. Its first run is not
        recorded: it compiles. None where what autograd kept is not what lies here: its hooks may have put a
        copy, or a recomputation, in its place."""
        if vectors.data_ptr() != self.vectors.data_ptr():
            return None
        which = tuple(g is not None for g in gradients)
        if which not in self._backwards:
            self._backwards[which] = None
            return walk.backward(self.call, gradients, self.vectors, [*self.saved])
        replay = self._backwards[which]
        if replay is None:
            held = [None if g is None else g.clone(memory_format=torch.preserve_format) for g in gradients]
            self._gradients[which] = held

            def run() -> None:
                self._found[which] = walk.backward(self.call, held, self.vectors, [*self.saved])

            replay = self._backwards[which] = self._record(run)
        for place, g in zip(self._gradients[which], gradients, strict=True):
            if place is not None and g is not None:
                place.copy_(g)
        replay()
        return _fresh(self._found[which])


def _fresh(gradients: RegionGradients) -> RegionGradients:
    """Return copies."""
    copies = {value: g.clone(memory_format=torch.preserve_format) for value, g in gradients.inputs.items()}
    return RegionGradients(copies, gradients.affine.clone(), gradients.reached)
