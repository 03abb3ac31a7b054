"""Keep what was read of a model for as long as it has the same submodules: its programs, each for one form of
call and one state of what Python read."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import operator
from typing import Any

from torch import fx, nn

from fastbn.engine.module_state import PARAMETERS
from fastbn.graph.regions import Graph
from fastbn.graph.trace.guards import Guards
from fastbn.graph.trace.tracer import Traced

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
OFTEN = 8  # changes of an attribute, after which the module that reads it runs as it was written
PROGRAMS = 16  # that are kept for one form of call


@dataclasses.dataclass
class Program:
    """A traced forward, or why there is none. `checked`: the modes in which it has been compared with the
    model's own forward."""

    guards: Guards
    graph: Graph
    module: fx.GraphModule | None = None
    why: str = ""
    traced: Traced | None = None
    checked: set[bool] = dataclasses.field(default_factory=set)


class Reading:
    """A model with the submodules that it has."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.programs: dict[Any, list[Program]] = {}  # the last used first
        self.written: dict[str, str] = {}  # modules that are known to run as they were written
        self.forms: set[Any] = set()
        self._changes: collections.Counter[tuple[str, str]] = collections.Counter()
        attributes = [
            vars(child)
            for module in model.modules()
            for child in module._modules.values()
            if child is not None
        ]
        # the dictionaries and the names in them, flat: they are looked up at each call, in one pass of C's
        self._attributes = [attribute for attribute in attributes for _ in HOOKS]
        self._hooks = [*HOOKS] * len(attributes)
        self._structure = [
            (module._modules, tuple(module._modules.values()))
            for module in model.modules()
            if module._modules
        ]
        self._convs = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)]
        dropout = nn.modules.dropout._DropoutNd  # which a match may look through
        self._dropouts = [module for module in model.modules() if isinstance(module, dropout)]

    def holds(self) -> bool:
        """Return whether the model still has these submodules."""
        return all(tuple(children.values()) == seen for children, seen in self._structure)

    def trains(self) -> tuple[bool, ...]:
        """Return which of the convolutions' parameters require grad."""
        parameters = itertools.chain.from_iterable(map(dict.values, map(PARAMETERS, self._convs)))
        return tuple([p is not None and p.requires_grad for p in parameters])

    def drops(self) -> tuple[tuple[bool, float], ...]:
        """Return the modes and the probabilities of the dropouts, which say whether they drop something."""
        return tuple([(dropout.training, dropout.p) for dropout in self._dropouts])

    def hooked(self) -> str:
        """Name a submodule with a hook."""
        if any(map(operator.getitem, self._attributes, self._hooks)):
            any_of = operator.attrgetter(*HOOKS)
            return next(name for name, module in self.model.named_modules() if name and any(any_of(module)))
        return ""

    def imaginary(self) -> bool:
        """Return whether the parameters are shapes without contents."""
        if not self._convs:
            return False
        conv = self._convs[0]
        first = conv._parameters.get("weight")
        if first is None:  # it is a submodule's, as of torch.nn.utils.parametrize
            first = next(conv.parameters(), None)
        return first is not None and first.is_meta

    def program(self, state: Any, anew: bool = False) -> Program | None:
        """Return the program for this state whose guards hold, or None. anew: without one the model will be
        traced, which must not be often."""
        programs = self.programs.get(state)
        if programs is None:
            return None
        for place, program in enumerate(programs):
            changed = program.guards.changed()
            if changed is None:
                if place:
                    programs.insert(0, programs.pop(place))
                return program
            if not place:
                first = changed
        self._changes[first] += anew
        if self._changes[first] > OFTEN:
            readers = programs[0].guards.readers.get(first)
            for path in readers or [first[0]]:
                self.written[path] = f"{'' if readers else 'self.'}{first[1]} changes from call to call"
        return None

    def keep(self, state: Any, program: Program) -> Program:
        """Keep a program for this state, the first to be asked, and forget the oldest beyond PROGRAMS; return
        it."""
        programs = self.programs.setdefault(state, [])
        programs.insert(0, program)
        del programs[PROGRAMS:]
        return program
