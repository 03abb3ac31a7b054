"""fuse(model) keeps the model's own forward and lets an engine run its matched regions."""

from __future__ import annotations

import collections
import functools
import inspect
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastbn import advice
from fastbn.engine import select
from fastbn.engine.interface import Engine
from fastbn.engine.native import build as native_build
from fastbn.engine.native.engine import STORAGE
from fastbn.engine.onednn_workaround import spare
from fastbn.engine.program.build import build
from fastbn.engine.program.calls import copy_that_called, imaginary, passed_over, unbound
from fastbn.engine.program.compare import difference, give_back_memory
from fastbn.engine.program.readings import Program, Reading
from fastbn.engine.region import refuse_stock, storage_dtype
from fastbn.engine.weight_cache import WeightCache
from fastbn.graph.regions import Graph
from fastbn.graph.trace.arguments import Form, Unlisted, taken
from fastbn.graph.trace.forward import forward_of, signature
from fastbn.graph.trace.guards import Guards
from fastbn.graph.trace.modes import autocast
from fastbn.graph.trace.tracer import Tracer, Untraceable

FORMS = 4  # of calls, after which floating point arguments are read at each call
MOST_FORMS = 64
READINGS = 16  # sets of submodules whose programs are kept


def fuse(
    model: nn.Module, engine: str | Engine = "auto", exact: bool = False, check: bool = True
) -> nn.Module:
    """Give a model the engine, in place, and return it: wherever a convolution with a frozen weight meets a
    BatchNorm, an addition, a ReLU, they run as one. Parameters, buffers, names and results stay as they are.

    engine: 'auto' (by the input's device and dtype, at the first forward), 'native', 'reference', 'stock',
    which undoes fuse; or an engine of one's own making.
    exact: without Winograd, whose transforms cost a few of float32's last bits, and make one NaN a tile of
    NaNs.
    check: compare the traced network with the model's own forward at the first call in each mode, on a part
    of the batch.

    The forward is traced at its first call, and again when what its Python code read has changed: an
    attribute, a layer's setting, a plain argument, a mode, a submodule, a requires_grad, a global or a
    closure's variable. A module whose forward does what no trace keeps (it sets an attribute or a global,
    draws Python's random numbers, decides by a tensor's values, enters no_grad or autocast) runs as it was
    written; where that is the model itself, it runs stock, with a warning that names the line. `explain`
    lists them. A frozen weight written through `.data` is not noticed: write it under torch.no_grad(). The
    first training call warns where little is gained. Raises UsageError for an unknown engine, MachineError
    for one that this machine can't run."""
    select.check(engine)
    spare(model)
    given = vars(model).get("forward")
    before = given.before if isinstance(given, Fused) else given
    if engine == "stock":
        if fused_forward(model) is not None:
            vars(model).pop("forward", None)
            vars(model).pop("_fused_forward", None)
            if isinstance(given, Fused) and before is not None:
                model.forward = before
        return model
    model.forward = Fused(model, engine, exact, check, before)
    return model


def fused_forward(model: nn.Module) -> Fused | None:
    """Return the fused forward that fuse() gave this model, or None."""
    given = vars(model).get("forward")
    while given is not None and not isinstance(given, Fused):
        given = getattr(given, "__func__", given)
        if hasattr(given, "fused_of"):
            return given.fused_of(model)
        given = getattr(given, "__wrapped__", None)
    return given


class Fused:
    """A model's fused forward. It reads the model anew when what it read no longer holds."""

    traced_through = True  # what traces a model around this one traces this one's own forward

    def __init__(
        self,
        model: nn.Module,
        engine: str | Engine,
        exact: bool = False,
        check: bool = True,
        before: Any = None,
    ):
        self.model, self.choice, self.exact, self.check, self.before = model, engine, exact, check, before
        self.engine: str = engine if isinstance(engine, str) else engine.name
        self.why = ""  # why the engine was chosen, known after the first forward
        self.form: Form | None = None  # of the last call
        # by engine; the programs for training and for evaluation share them
        self._packs: dict[str, WeightCache] = {}
        self._readings: collections.OrderedDict[tuple[int, ...], Reading] = collections.OrderedDict()
        self._reading: Reading | None = None
        self._floats = False  # whether floating point arguments vary
        self._warned: set[str] = set()
        self.advised = False  # whether what a step gains has been looked at
        self._lock = threading.RLock()

    # deepcopy and pickle carry the model and the choice, not what was read
    def __getstate__(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in ("model", "exact", "check", "before")}
        return state | {"engine": self.choice}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @functools.cached_property
    def __func__(self) -> Callable[..., Any]:
        choice = self.choice, self.exact, self.check  # without a reference to this model
        return unbound(lambda model: Fused(model, *choice))

    @property
    def __self__(self) -> nn.Module:
        return self.model

    @torch._dynamo.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (copy := copy_that_called(self)) is not None:
            return self._of_a_copy(copy, args, kwargs)
        if torch._C._get_tracing_state() is not None or any(
            isinstance(value, fx.Proxy) for value in (*args, *kwargs.values())
        ):
            return self._stock(args, kwargs)
        why, program, tensors = self.prepared(args, kwargs)
        if program is None:
            if why:
                self._warn(why)
            return self._stock(args, kwargs)
        assert program.module is not None
        advice.first_step(self, program.module, tensors)
        return program.module(*tensors)

    def prepared(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[str, Program | None, list[Any]]:
        """Return the program of a call and its tensors; or why there is none, "" where nobody need know."""
        try:
            form, tensors = taken(args, kwargs, self._floats)
        except Unlisted as unlisted:
            return (
                f"its forward was called with something other than tensors and plain values: {unlisted}",
                None,
                [],
            )
        reading = self._look()
        given = [t for t in tensors if isinstance(t, Tensor)]
        if not given:
            return "its forward was called without a tensor", None, []
        if imaginary(given) or reading.imaginary():
            return "", None, []
        if why := passed_over(reading):
            return why, None, []
        device = given[0].device
        like = next((x for x in given if x.is_floating_point()), next(self.model.parameters(), given[0]))
        dtype = storage_dtype(like)
        if self.choice == "auto" and (why := select.stock_instead(device, dtype)):
            return "" if why == select.XLA else why, None, []
        program = self._program(device, dtype, form, reading)
        self.form = form
        if self.check and self.model.training not in program.checked:
            with self._lock:
                self._compare(program, form, tensors)
        return program.why, None if program.why else program, tensors

    def _compare(self, program: Program, form: Form, tensors: list[Any]) -> None:
        """Compare the trace with the model's own forward, once in each mode."""
        if program.why or self.model.training in program.checked or program.traced is None:
            return
        if differs := difference(self.model, self.own, program.traced, form, tensors):
            program.why, program.module = f"traced by torch.fx it is not the same: {differs}", None
            program.graph = Graph((), ((type(self.model).__name__, program.why),))
        program.checked.add(self.model.training)
        give_back_memory(self.model)

    def program(
        self, device: torch.device, dtype: torch.dtype, constants: dict[str, Any] | None = None
    ) -> tuple[Graph, fx.GraphModule]:
        """Return the graph and its program for the model as it now is, on this device. Raises Untraceable
        where it has none. constants: arguments of its forward; without them, those of the last call."""
        program = self.latest(device, dtype, constants)
        if program.module is None or program.why:
            raise Untraceable(f"{type(self.model).__name__} runs stock: {program.why}", program.guards)
        return program.graph, program.module

    def latest(
        self, device: torch.device, dtype: torch.dtype, constants: dict[str, Any] | None = None
    ) -> Program:
        """Return what `program` does, of the last call's form where no arguments are given."""
        form = self.form if constants is None else None
        form = form or Form.of(signature(self.own), constants or {})
        return self._program(device, dtype, form, self._look())

    def _program(self, device: torch.device, dtype: torch.dtype, form: Form, reading: Reading) -> Program:
        engine, self.why = select.choose(self.choice, device, dtype, self.exact)
        assert engine is not None
        if (
            engine is select.REFERENCE
            and self.choice == "auto"
            and dtype in STORAGE
            and native_build.failed()
        ):
            select.warn_of_reference(self.why)
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast(device.type)
        state = engine, device, form, modes, reading.trains(), reading.drops()
        program = reading.program(state)
        if program is None:
            with self._lock:
                program = reading.program(state, anew=True) or reading.keep(
                    state, self._built(engine, form, reading)
                )
        return program

    def _built(self, engine: Engine, form: Form, reading: Reading) -> Program:
        args, kwargs = form.filled(object)
        signature(self.own).bind(*args, **kwargs)  # a wrong call is a TypeError, as it is stock
        if "" in reading.written:
            return Program(Guards(), Graph((), ()), why=reading.written[""])
        reading.forms.add(form)
        if len(reading.forms) > FORMS:
            self._floats = True
        if len(reading.forms) > MOST_FORMS:
            return Program(Guards(), Graph((), ()), why="its plain arguments change from call to call")
        try:
            traced = Tracer(self.model, self.own, reading.written).run(form.filled)
        except Untraceable as error:
            return Program(
                error.guards, Graph((), ((type(self.model).__name__, str(error)),)), why=str(error)
            )
        graph, module = build(self.model, traced, engine, self._packs.setdefault(engine.name, {}))
        return Program(traced.guards, graph, module, traced=traced)

    @property
    def _programs(self) -> dict[Any, tuple[Graph, fx.GraphModule]]:
        """Return every graph and its program, of the submodules that the model has now."""
        kept = self._reading.programs.items() if self._reading else ()
        return {
            (state, i): (p.graph, p.module)
            for state, programs in kept
            for i, p in enumerate(programs)
            if p.module is not None
        }

    def defaults(self) -> dict[str, Any]:
        """Return every argument of the model's forward that has a default, fixed at it."""
        parameters = signature(self.own).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}

    @property
    def own(self) -> Callable[..., Any]:
        """Return the model's own forward, as a function of the model."""
        return forward_of(self.model) if self.before is not None else type(self.model).forward

    def _stock(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.own(self.model, *args, **kwargs)

    def _warn(self, why: str) -> None:
        refuse_stock(why, self.model.modules())
        if why not in self._warned:
            self._warned.add(why)
            warnings.warn(f"fastbn runs {type(self.model).__name__} stock in this call: {why}", stacklevel=6)

    def _look(self) -> Reading:
        """Return what was read of the model with the submodules that it has now."""
        reading = self._reading
        if reading is None or not reading.holds():
            with self._lock:
                key = tuple(map(id, self.model.modules()))
                if key not in self._readings:
                    spare(self.model)
                    self._readings[key] = Reading(self.model)
                reading = self._readings[key]
                self._readings.move_to_end(key)
                while len(self._readings) > READINGS:
                    self._readings.popitem(last=False)
                self._reading = reading
        return reading

    def _of_a_copy(self, copy: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not getattr(copy, "_is_replica", False):
            vars(copy)["forward"] = Fused(copy, self.choice, self.exact, self.check, self.before)
            return vars(copy)["forward"](*args, **kwargs)
        self._warn(
            "it is a replica of torch.nn.DataParallel, made anew at each call; use DistributedDataParallel"
        )
        return self.own(copy, *args, **kwargs)
