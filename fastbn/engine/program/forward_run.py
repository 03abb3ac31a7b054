"""Follow a forward while it runs, and say whether its operations are those of its trace: the same functions
and modules in the same order, each on the same tensors. Where they are, the trace need not be run to be
compared. What this can't tell (a custom backward, a result of a class of its own) is left to a comparison of
numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

from fastbn.graph.aliasing import IN_PLACE
from fastbn.graph.trace.draws import random_state, restore, same_numbers
from fastbn.graph.trace.outputs import Unformed, leaves
from fastbn.graph.trace.tracer import Traced

# most of a network; they draw no random numbers, so that nobody need look
STILL = frozenset(
    [
        *(nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Sigmoid),
        *(nn.MaxPool2d, nn.AdaptiveAvgPool2d, F.relu, F.adaptive_avg_pool2d, torch.relu, torch.flatten),
        *(torch.cat, Tensor.add, Tensor.add_, Tensor.mul, Tensor.mean),
    ]
)


class ExecutedOperation(NamedTuple):
    """An operation that was run."""

    function: Any  # or the module
    args: Any
    kwargs: dict[str, Any]
    result: Any
    modes: tuple[Any, ...]  # that it ran under
    drawn: bytes | None  # the state of the random numbers after it, but for STILL


class ForwardRun(TorchFunctionMode):
    """One run of a forward, step by step. The modules that its trace calls are a step each.

    model: a copy for a trial; while it runs, forwards of its modules are replaced by ones that note the call.
    """

    def __init__(self, model: nn.Module, traced: Traced):
        super().__init__()
        self._model, self._traced = model, traced
        self._steps: list[ExecutedOperation] = []
        self._inside = False  # one of those modules
        self._tensors: list[Any] = []
        self._returned: Any = None
        named = dict(model.named_modules(remove_duplicate=False))
        calls = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
        self._modules = {path: named[path] for path in calls}
        replaced = {inner for module in self._modules.values() for inner in module.modules()}
        self._others = [module for module in model.modules() if module not in replaced]
        self._buffers = self._held()

    def run(self, call: Callable[[], Any], tensors: list[Any]) -> Any:
        """Return what a call of the forward on these tensors returns."""
        self._tensors, self._before = tensors, _modes()
        forwards = {module: vars(module).get("forward") for module in self._modules.values()}
        for module in forwards:
            vars(module)["forward"] = self._noted(module)
        try:
            with self:
                self._returned = call()
        finally:
            for module, forward in forwards.items():
                if forward is None:
                    del vars(module)["forward"]
                else:
                    vars(module)["forward"] = forward
        return self._returned

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside:  # below a mode of the forward's own
            return function(*args, **kwargs)
        given = tuple([list(item) if type(item) is list else item for item in args])  # as it now is
        result = function(*args, **kwargs)
        self._steps.append(
            ExecutedOperation(
                function, given, kwargs, result, _modes(), None if function in STILL else _drawn()
            )
        )
        return result

    def _noted(self, module: nn.Module) -> Callable[..., Any]:
        still = type(module) in STILL and "forward" not in vars(module)
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return original(*args, **kwargs)
            self._inside, top = True, _pop_mode()  # inside, operations cost what they do elsewhere
            if top is not self:  # the forward's own, which stays
                _push_mode(top)
            try:
                result = original(*args, **kwargs)
                drawn = None if still else _drawn()
            finally:
                self._inside = False
                if top is self:
                    _push_mode(self)
            self._steps.append(ExecutedOperation(module, args, kwargs, result, _modes(), drawn))
            return result

        return forward

    def _held(self) -> list[dict[str, int]]:
        """Return the buffers of the modules that are no step."""
        return [{name: id(held) for name, held in m._buffers.items()} for m in self._others]

    def as_traced(self, before: Any, after: Any) -> bool:
        """Return whether what ran is the trace. before, after: the states of the random numbers."""
        try:
            return self._held() == self._buffers and self._follows() and self._draws(before, after)
        except Exception:  # of a trace that is not what ran
            return False
        finally:
            self._steps.clear()  # which hold all that was made on the way

    def _follows(self) -> bool:
        steps, given = iter(self._steps), iter(self._tensors)
        values: dict[fx.Node, Any] = {}
        for node in self._traced.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
                continue
            if node.op == "get_attr":
                values[node] = self._attribute(str(node.target))
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "output":
                return all(map(_idle, steps)) and self._is_returned(args[0])
            if node.op == "call_function" and _plain(node, args, kwargs):
                values[node] = node.target(*args, **kwargs)
                continue
            step = self._next(node, args, kwargs, steps)
            if step is None:
                return False
            values[node] = step.result
        return False

    def _next(
        self, node: fx.Node, args: Any, kwargs: Any, steps: Iterator[ExecutedOperation]
    ) -> ExecutedOperation | None:
        """Return the step that a node stands for, if it is the next."""
        for step in steps:
            if step.modes == self._before and self._is_step(node, args, kwargs, step):
                return step
            if not _idle(step):
                return None
        return None

    def _is_step(self, node: fx.Node, args: Any, kwargs: Any, step: ExecutedOperation) -> bool:
        if node.op == "call_module":
            same = step.function is self._modules[str(node.target)]
        elif node.op == "call_method":
            same = step.function == getattr(Tensor, str(node.target), None)
        elif node.target is getattr and len(args) == 2:
            return step.function == _reader(args[1]) and _equal(args[:1], step.args)
        else:
            same = any(step.function is spelling for spelling in (node.target, *_methods(node.target)))
        return same and _equal(args, step.args) and _equal(kwargs, step.kwargs)

    def _attribute(self, target: str) -> Any:
        if target in self._traced.constants:
            return self._traced.constants[target]
        owner, _, name = target.rpartition(".")
        return getattr(self._model.get_submodule(owner), name)

    def _is_returned(self, made: Any) -> bool:
        try:
            return type(made) is type(self._returned) and _equal(leaves(made), leaves(self._returned))
        except Unformed:
            return False

    def _draws(self, before: Any, after: Any) -> bool:
        """Return whether the steps, and nothing between them, account for all that was drawn: those after
        which the state is another than before them, run once more, leave the same."""
        last = before[1].numpy().tobytes()
        if all(step.drawn is None or step.drawn == last for step in self._steps):
            return same_numbers(before, after)
        restore(before)
        for step in self._steps:
            if step.drawn is not None and step.drawn != last:
                with torch.no_grad():
                    step.function(*step.args, **step.kwargs)
                if _drawn() != step.drawn:
                    return False
                last = step.drawn
        return same_numbers(random_state(), after)


def _drawn() -> bytes:
    return torch.default_generator.get_state().numpy().tobytes()


def _modes() -> tuple[Any, ...]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch._C._is_any_autocast_enabled()


def _idle(step: ExecutedOperation) -> bool:
    """Return whether a step is a dropout that drops nothing, which a trace leaves out."""
    named = "drop" in getattr(step.function, "__name__", "")
    return named and bool(step.args) and step.result is step.args[0]


def _plain(node: fx.Node, args: Any, kwargs: Any) -> bool:
    """Return whether a function of Python's own is called on numbers alone, such as a size's."""
    of_python = getattr(node.target, "__module__", "") in ("_operator", "builtins", "math")
    return of_python and not any(isinstance(item, Tensor) for item in (*args, *kwargs.values()))


def _reader(name: str) -> Any:
    """Return the function that torch calls where this attribute of a tensor is read."""
    return getattr(getattr(Tensor, name, None), "__get__", None)


def _methods(function: Any) -> list[Any]:
    """Return the methods that torch may call for a function of `operator`."""
    if getattr(function, "__module__", "") != "_operator":
        return []
    name = function.__name__.strip("_")
    method = (name[1:] + "_" if function in IN_PLACE else name).replace("truediv", "div")
    return [getattr(Tensor, spelling) for spelling in (method, f"__{name}__") if hasattr(Tensor, spelling)]


def _equal(expected: Any, actual: Any) -> bool:
    if isinstance(expected, Tensor):
        return expected is actual
    if isinstance(expected, (list, tuple)):
        return (
            isinstance(actual, (list, tuple))
            and len(expected) == len(actual)
            and all(map(_equal, expected, actual))
        )
    if isinstance(expected, dict):
        return (
            isinstance(actual, dict)
            and expected.keys() == actual.keys()
            and all(_equal(value, actual[key]) for key, value in expected.items())
        )
    return type(expected) is type(actual) and repr(expected) == repr(actual)
