"""Trace a model's forward by torch.fx, and leaves out what a trace would change the meaning of.

The model's shadow is run on proxies (watched.py). Where something is seen that a trace would fix or drop, the
module in whose forward it happens becomes one node that calls it as it was written, and the trace goes on
behind it; in the model's own forward it is Untraceable."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from fastbn.graph.aliasing import memory_of, mutates
from fastbn.graph.trace.draws import preserved, python_state, restore_python
from fastbn.graph.trace.guards import Guards
from fastbn.graph.trace.modes import modes, put_back
from fastbn.graph.trace.outputs import Unformed, formed
from fastbn.graph.trace.outside import Outside
from fastbn.graph.trace.proxies import INSIDE, OperationRecorder, RecordingProxy
from fastbn.graph.trace.recorded import leavings, recorded
from fastbn.graph.trace.watched import Shadows, expect_leaf, leaf

LOCK = threading.RLock()  # one trace at a time; a model that is not being traced never waits for it
# write to the running statistics they are given
UPDATES = (F.batch_norm, torch.batch_norm, F.instance_norm, torch.instance_norm)
WRITTEN: dict[type, Callable[[Any], Any]] = {int: int.__int__, float: float.__float__, str: str.__str__}
OUTSIDE = {
    nn.Module._call_impl.__code__: "calls a module that is not among its submodules",
    inspect.unwrap(checkpoint).__code__: "runs a part under torch.utils.checkpoint",
}


class Untraceable(TypeError):
    """No trace of the model's forward would mean the same; the message names the line and why, `guards`
    for how long."""

    def __init__(self, why: str, guards: Guards):
        super().__init__(why)
        self.guards = guards


class Seen(BaseException):
    """A trace would change the meaning of what was seen. (Not an Exception: what is traced must not catch
    it.)"""


@dataclasses.dataclass
class Traced:
    """A model's operations. `guards` says whether they still are; `written` the modules that run as they
    were written, and why."""

    graph: fx.Graph
    guards: Guards
    written: dict[str, str]
    constants: dict[str, Tensor]  # tensors from outside the model, by the names of their get_attr nodes


class Tracer(fx.Tracer):
    """One trace of one model."""

    def __init__(self, model: nn.Module, forward: Callable[..., Any], written: dict[str, str]):
        super().__init__()
        self.model, self._own, self.written = model, forward, dict(written)
        self.modules = dict(model.named_modules())
        self.shadows = Shadows(model, self)
        self.constants: dict[str, Tensor] = {}
        self._attributes: dict[str, fx.Proxy] = {}
        self._path = [""]  # of the modules whose forward is running
        self._pending: list[str] = []  # refusals that have been raised, and that Python code may have caught
        self._born: list[tuple[weakref.ref[fx.Proxy], str]] = []
        self._modes = modes()
        self._beside: dict[Any, Outside] = {}  # by the function that is a forward
        self._readers: dict[Any, list[str]] = {}

    def run(self, call: Callable[[Callable[[], fx.Proxy]], tuple[tuple[Any, ...], dict[str, Any]]]) -> Traced:
        """Trace the model's forward. call: makes its arguments, from placeholders. Raises Untraceable."""
        self.graph, self.root = fx.Graph(), self.model
        reason = ""
        with LOCK, preserved(), recorded(self), OperationRecorder(self):
            try:
                self._forward(call)
            except (Seen, Exception) as error:
                reason = self._reason(error)
            put_back(self._modes)
        self._attributes.clear()
        left = leavings(self._born)
        if reason or left:
            raise Untraceable(reason or f"{left}: keeps a tensor beyond the call", self.shadows.guards)
        return Traced(self.graph, self.shadows.guards, self.written, self.constants)

    def _forward(self, call: Any) -> None:
        number = iter(range(sys.maxsize))
        args, kwargs = call(lambda: self.create_proxy("placeholder", f"x{next(number)}", (), {}))
        shadow: Any = self.shadows.of(self.model)
        value = self._watching(self.model, self._own, lambda: self._own(shadow, *args, **kwargs))
        for module in self.modules.values():
            if name := self.shadows.written_past(module) or self.shadows.written_to_class():
                self.refuse(f"writes to {name}")
        for key, paths in self._readers.items():
            outside = self._beside[key]
            for place, expected in zip(outside.places, outside.before, strict=True):
                guards = self.shadows.guards
                guards.add_outside(paths, place.mapping, place.name, place.title, expected)
        try:
            self.create_node("output", "output", (formed(self, value),), {})
        except Unformed as unformed:
            raise Seen(f"{self._line(None)}: {unformed}") from None

    def _watching(self, module: nn.Module, written: Any, forward: Callable[[], Any]) -> Any:
        """Run a module's forward; raise Seen where it left something behind, or caught a refusal."""
        before, count = python_state(), len(self._pending)
        key = getattr(written, "__func__", written), type(module)
        if key not in self._beside:
            self._beside[key] = Outside([written], [type(module)])
        outside = self._beside[key]
        try:
            value = forward()
        finally:
            if changed := outside.changed():
                outside.put_back()
        if changed:
            self.refuse(f"changes {changed}")
        self._readers.setdefault(key, []).append(self.shadows.paths[module])
        if len(self._pending) > count:
            raise Seen(self._pending[-1])
        if python_state() != before:
            self.refuse("draws from Python's or numpy's random numbers")
        if name := self.shadows.rewritten():
            self.refuse(f"changes self.{name}")
        if name := self.shadows.written_past(module):
            self.refuse(f"writes to self.{name}")
        return value

    def refuse(self, why: str) -> None:
        """Say that the module whose forward is running must run as it was written. Raises Seen."""
        self._pending.append(f"{self._line(sys._getframe(1))}: {why}")
        raise Seen(self._pending[-1])

    def call(self, shadow: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a submodule's call: trace its forward, or make one node of it."""
        module, path = self.shadows.module(shadow), self.shadows.path(shadow)
        if path not in self.written and not leaf(module):
            mark, drawn, pending, grad = (
                next(iter(reversed(self.graph.nodes))),
                python_state(),
                len(self._pending),
                torch.is_grad_enabled(),
            )
            self._path.append(path)
            try:
                written = vars(module).get("forward", type(module).forward)
                return self._watching(module, written, lambda: shadow.forward(*args, **kwargs))
            except (Seen, Exception) as error:
                self.written[path] = self._reason(error)
            finally:
                self._path.pop()
            del self._pending[pending:]
            restore_python(drawn)
            put_back(self._modes | {"the grad mode": grad})
            self._erase(mark)
            self.shadows.take_back()
        expect_leaf(self.shadows.guards, self.shadows.paths, module)
        return self.create_proxy("call_module", path, args, kwargs)

    def _erase(self, mark: fx.Node) -> None:
        """Take back the nodes behind this one."""
        for node in reversed(list(self.graph.nodes)):
            if node is mark:
                break
            self.graph.erase_node(node)
        self._attributes = {name: proxy for name, proxy in self._attributes.items() if not proxy.node._erased}

    def _reason(self, error: BaseException) -> str:
        """Return why a forward is not traced. The frames of the error let go of what they hold."""
        said = str(error).strip().splitlines()
        why = f"{self._line(error.__traceback__)}: {said[0] if said else type(error).__name__}"
        traceback.clear_frames(error.__traceback__)
        return str(error) if isinstance(error, Seen) else why

    def _line(self, place: types.FrameType | types.TracebackType | None) -> str:
        forward = type(self.modules[self._path[-1]]).forward if self._path[-1] else self._own
        code = inspect.unwrap(forward).__code__
        return where(place) or f"{code.co_filename.rpartition('/')[2]}:{code.co_firstlineno}"

    def tensor(self, path: str, value: Tensor) -> fx.Proxy:
        """Return the proxy of a parameter, a buffer or another tensor of the model's, which is looked up at
        each call."""
        if path not in self._attributes:
            self._attributes[path] = self.create_proxy("get_attr", path, (), {})
        return self._attributes[path]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        made = RecordingProxy(node, self)
        self._born.append((weakref.ref(made), where(sys._getframe(1))))
        return made

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            if a.tracer is not self:
                self.refuse("uses a tensor of an earlier trace")
            return a.node
        if isinstance(a, Tensor):
            return self._outside(a)
        if isinstance(a, nn.Module):
            self.refuse(f"hands a {type(a).__name__} to an operation")
        if isinstance(a, tuple) and hasattr(a, "_fields"):
            return self.create_node("call_function", type(a), tuple(map(self.create_arg, a)), {})
        for kind, plainly in WRITTEN.items():
            if isinstance(a, kind) and type(a) not in (bool, kind):
                return plainly(a)  # numpy's and enum's, whose repr is no code
        return fx.proxy.TracerBase.create_arg(self, a)

    def _outside(self, tensor: Tensor) -> fx.Node:
        if id(tensor) in self.shadows.tensors:
            module, _, name = self.shadows.tensors[id(tensor)]
            path = self.shadows.paths[module]
            return self.tensor(f"{path}.{name}" if path else name, tensor).node
        name = next(
            (name for name, known in self.constants.items() if known is tensor),
            f"_tensor_constant{len(self.constants)}",
        )
        self.constants[name] = tensor
        return self.tensor(name, tensor).node

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: Any = None, type_expr: Any = None
    ) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if kind.startswith("call_"):
            frame: types.FrameType | None = sys._getframe(1)
            while frame is not None and frame.f_code is not Tracer._forward.__code__:
                if frame.f_code in OUTSIDE:
                    self.refuse(OUTSIDE[frame.f_code])
                frame = frame.f_back
            if (now := modes()) != self._modes:
                self.refuse(
                    f"sets {', '.join(mode for mode, value in now.items() if value != self._modes.get(mode))}"
                )
            if (held := self._rewrites(node)) is not None:
                self.refuse(f"writes to {held.target}")
        return node

    def _rewrites(self, node: fx.Node) -> fx.Node | None:
        """Return a tensor of the model's, or from outside, that a node writes to."""
        targets = [node.kwargs.get("out")]
        if mutates(node, self.modules):
            targets += node.args[:1]
        if node.target in UPDATES:
            targets += [*node.args[1:3], node.kwargs.get("running_mean"), node.kwargs.get("running_var")]
        for target in targets:
            for node in memory_of(target, self.modules):
                if node.op == "get_attr":
                    return node
        return None


def where(place: types.FrameType | types.TracebackType | None) -> str:
    """Return "net.py:12", the line of the user's code that led here."""
    best = None
    if isinstance(place, types.TracebackType):
        steps = []
        while place is not None:
            steps.append((place.tb_frame.f_code.co_filename, place.tb_lineno))
            place = place.tb_next
    else:
        frame, steps = place, []
        while frame is not None and frame.f_code is not Tracer._forward.__code__:
            steps.append((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
        steps.reverse()
    for name, line in steps:
        if not name.startswith(INSIDE):
            best = name, line
    return f"{best[0].rpartition('/')[2]}:{best[1]}" if best else ""
