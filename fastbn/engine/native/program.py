"""A region's walks as programs for the CPU: lists of kernel calls, written down once a shape and state of the
modules, and played by one call of the library. Python's part of a step, a tenth of a millisecond a
convolution, falls away, and the memory is laid out beforehand.

A program writes over what its forward saved as soon as its backward is done with it. Where the graph is
retained, where gradient comes from only some of the outputs, or where autograd's hooks put something else in
the place of what was saved, the backward is walked."""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import threading
from typing import Any

import torch
from torch import Tensor

from fastbn.engine import walk
from fastbn.engine.buffers import Buffers, activation
from fastbn.engine.executor import KEYS, ForwardResult, key_of, walked
from fastbn.engine.native import abi
from fastbn.engine.native.engine import Native
from fastbn.engine.native.memory_layout import Span, lay_out, scratch_bytes
from fastbn.engine.native.tape import Tape, TapeBuffer
from fastbn.engine.walk import RegionGradients
from fastbn.graph.regions import Conv

# the memory that a pass is played in; from the last on tensors that it is handed
KEPT, SCRATCH, OWN = 0, 1, 2


class Programs:
    """The executor that plays: the programs of one region, the latest states'."""

    def __init__(self, engine: Native):
        self._engine = engine
        self._programs: collections.OrderedDict[Any, tuple[_Program | None, list[Any]]] = (
            collections.OrderedDict()
        )

    def forward(self, call: walk.Call, inputs: list[Tensor]) -> ForwardResult:
        """Run as walk.forward does, played where nothing in it is Python's: no group of processes, no tensor
        that the kernels can't read."""
        if call.group is not None:
            return walked(call, inputs)
        key = key_of(call, inputs)
        if key not in self._programs:
            # alive: the key has their ids
            made = _Program(call, inputs, self._engine) if _readable(call) else None
            self._programs[key] = made, call.packed
            while len(self._programs) > KEYS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        program, _ = self._programs[key]
        return walked(call, inputs) if program is None else program.forward(inputs)


def _readable(call: walk.Call) -> bool:
    pairs = zip(call.region.convs, call.modules, strict=True)
    return all(abi.by_address(norm, module.bias, conv.channels) for conv, (module, norm) in pairs)


class _Program:
    """A forward, and the backward of all its outputs."""

    def __init__(self, call: walk.Call, inputs: list[Tensor], engine: Native):
        self._buffers: Buffers = engine.buffers
        tape = Tape()
        own = dataclasses.replace(call, operations=engine.onto(tape), batch=[], parts=[])
        count = call.region.inputs
        given = [activation(tape, tuple(x.shape), x.dtype) for x in inputs[:count]]
        given += [tape.empty(tuple(x.shape), x.dtype) for x in inputs[count:]]
        outputs, vectors, saved = walk.forward(own, given)
        tape.adopt(vectors)
        turn = len(tape.calls)
        arriving: list[Tensor] = []
        found: dict[int, Tensor] = {}
        flat: list[Tensor] = []
        self._reached: frozenset[Conv] = frozenset()
        self._live = [value in call.live for value in call.region.outputs]
        if any(self._live):
            gradients = [
                activation(tape, tuple(z.shape), z.dtype) if live else None
                for z, live in zip(outputs, self._live, strict=True)
            ]
            arriving = [g for g in gradients if g is not None]
            back = walk.backward(own, gradients, vectors, [*saved])
            found, flat, self._reached = back.inputs, [tape.adopt(back.affine)], back.reached
            saved = [vectors, *saved]
        self._call = dataclasses.replace(own, operations=call.operations)
        self._outputs = [(tuple(z.shape), z.dtype) for z in outputs]
        self._found = {value: (tuple(g.shape), g.dtype) for value, g in found.items()}
        self._flat = [f.shape for f in flat]

        tape.note_lifetimes()
        before, after = [*given, *outputs], [*arriving, *found.values(), *flat]
        lasting = _starts(saved) - _starts(before)
        spans = {
            b: Span(b.bytes, b.first, b.last)
            for b in tape.buffers
            if b.first >= 0 and b.start not in _starts(before + after)
        }
        saving = [span for b, span in spans.items() if b.start in lasting]
        self._kept = lay_out(
            saving, [span for b, span in spans.items() if b.start not in lasting], len(tape.calls)
        )
        places = {b.start: span.offset for b, span in spans.items() if span.kept}
        self._saved = [(t.dtype, t.shape, t.stride(), places.get(t.data_ptr())) for t in saved]
        self._dtypes = {dtype for dtype, *_ in self._saved}
        self._elsewhere = {
            place: _position(t, before) for place, t in enumerate(saved) if t.data_ptr() not in lasting
        }
        foreign = [saved[place] for place in self._elsewhere]
        self._forward = _Pass(tape, range(turn), spans, before, engine.kernels)
        self._backward = _Pass(tape, range(turn, len(tape.calls)), spans, after + foreign, engine.kernels)

    def forward(self, inputs: list[Tensor]) -> ForwardResult:
        """Run as walk.forward does. What is saved lies in one block, lent until nobody refers to it."""
        kept = self._buffers.empty((self._kept,), torch.uint8)
        outputs = [activation(self._buffers, *like) for like in self._outputs]
        own = [*inputs, *outputs]
        self._forward.play(kept.data_ptr(), own, self._buffers)
        if not any(self._live):
            return ForwardResult(outputs, inputs[0].new_empty(0), [], self._call)
        by_type = {dtype: kept.view(dtype) for dtype in self._dtypes}
        saved = [
            own[self._elsewhere[place]]
            if at is None
            else by_type[dtype].as_strided(shape, stride, at // dtype.itemsize)
            for place, (dtype, shape, stride, at) in enumerate(self._saved)
        ]
        return ForwardResult(outputs, saved[0], saved[1:], self._call, self)

    def backward(
        self, gradients: list[Tensor | None], vectors: Tensor, saved: list[Tensor]
    ) -> RegionGradients | None:
        """walk.backward of what a forward left, or None where it has to be walked."""
        if [
            g is not None for g in gradients
        ] != self._live or torch._C._autograd._get_current_graph_task_keep_graph():
            return None
        at = [t.data_ptr() for t in (vectors, *saved)]
        kept = at[0] - (self._saved[0][3] or 0)
        if any(
            place is not None and kept + place != found
            for found, (*_, place) in zip(at, self._saved, strict=True)
        ):
            return None
        found = {value: activation(self._buffers, *like) for value, like in self._found.items()}
        flat = [vectors.new_empty(shape) for shape in self._flat]
        foreign = [saved[place - 1] for place in self._elsewhere]
        self._backward.play(
            kept, [*(g for g in gradients if g is not None), *found.values(), *flat, *foreign], self._buffers
        )
        return RegionGradients(found, flat[0], self._reached)


def _starts(tensors: list[Tensor]) -> set[int]:
    return {t.data_ptr() for t in tensors}


def _position(t: Tensor, among: list[Tensor]) -> int:
    return next(i for i, other in enumerate(among) if other.data_ptr() == t.data_ptr())


class _Pass:
    """Some of a tape's calls, as the library's player reads them."""

    def __init__(
        self, tape: Tape, which: range, spans: dict[TapeBuffer, Span], own: list[Tensor], kernels: ctypes.CDLL
    ):
        """own: tensors that are in neither kept nor scratch memory, in the order in which they will be
        handed over."""
        slots = {b: (KEPT if span.kept else SCRATCH, span.offset) for b, span in spans.items()}
        for i, t in enumerate(own):
            buffer = tape.find(t.data_ptr())
            assert buffer is not None
            slots[buffer] = (OWN + i, 0)
        self._kernels, self._lock = kernels, threading.Lock()
        self._written = tape.calls[which.start : which.stop]
        self._scratch = scratch_bytes(spans.values(), which)
        self._steps = (abi.StepStruct * len(which))()
        patches: list[abi.PatchStruct] = []
        for step, call in zip(self._steps, self._written, strict=True):
            step.what, step.n[: len(call.n)], step.at[: len(call.at)] = call.what, call.n, call.at
            first = ctypes.addressof(step) + abi.StepStruct.at.offset
            pointers = [
                (first + i * ctypes.sizeof(ctypes.c_void_p), at)
                for i, at in enumerate(call.at)
                if at is not None
            ]
            for stands, points in [*pointers, *call.fields]:
                if (buffer := tape.find(points)) is not None:
                    slot, offset = slots[buffer]
                    patches.append(abi.PatchStruct(stands, slot, offset + points - buffer.start))
        self._patches = (abi.PatchStruct * len(patches))(*patches)

    def play(self, kept: int, own: list[Tensor], buffers: Buffers) -> None:
        """One at a time: the structures are the program's own."""
        scratch = buffers.empty((self._scratch,), torch.uint8)
        memory = [kept, scratch.data_ptr(), *(t.data_ptr() for t in own)]
        places = (ctypes.c_void_p * len(memory))(*memory)
        with self._lock:
            self._kernels.fastbn_play(
                self._steps,
                len(self._steps),
                self._patches,
                len(self._patches),
                places,
                torch.get_num_threads(),
            )
