"""Find in a traced network what can run fused: convolution with a frozen weight -> BatchNorm [->
addition] [-> activation].

Only torch's own modules and functions are named here, so any traceable network can match.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from fastbn.graph import activations, behaviour
from fastbn.graph.activations import IDENTITY, Function
from fastbn.graph.aliasing import mutated, mutates
from fastbn.graph.passing import look_through

ADDITIONS = {operator.add, operator.iadd, torch.add}


@dataclasses.dataclass
class FusedUnit:
    """A join before it has numbers: its convolutions and their BatchNorms, the residual, and the node that
    is z."""

    convs: list[tuple[fx.Node | None, fx.Node | None]]  # either of the two may be absent
    residual: fx.Node | None
    function: Function
    output: fx.Node
    nodes: list[fx.Node]

    @property
    def inputs(self) -> list[fx.Node]:
        """Return the nodes that the unit reads: one for each pair, and the residual where there is one."""
        firsts = [conv or norm for conv, norm in self.convs]
        read = [*(first.args[0] for first in firsts if first is not None), self.residual]
        return [node for node in read if isinstance(node, fx.Node)]


# a convolution and the BatchNorm that reads it; one of the two may be absent
UnitPair = tuple[fx.Node | None, fx.Node | None]
NO_NORM = "its output does not go to a BatchNorm2d alone"


@dataclasses.dataclass
class _Heads:
    """The heads that units begin with: by the node whose value may be added and activated, its pair and what
    that node's own forward ends with."""

    pairs: dict[fx.Node, UnitPair] = dataclasses.field(default_factory=dict)
    ends: dict[fx.Node, Function] = dataclasses.field(default_factory=dict)

    def add(self, node: fx.Node, pair: UnitPair, function: Function = IDENTITY) -> None:
        self.pairs[node], self.ends[node] = pair, function


def match(
    graph: fx.Graph, modules: dict[str, nn.Module], unsupported: Callable[[str, nn.Conv2d], str | None],
    functions: frozenset[str],
    halves: bool = False,
) -> tuple[list[FusedUnit], dict[str, str]]:  # fmt: skip
    """Return the units of a traced network in the order of their outputs, and why the other convolutions run
    stock, as do activation functions that are not among the engine's. Nodes that return what they are given
    are taken out of the graph first.

    halves: match also a BatchNorm that reads no convolution, where one reads it (pre-activation), and a
    convolution that no BatchNorm reads, behind what is matched."""
    look_through(graph, modules)
    barred = mutated(graph, modules)
    heads = _Heads()
    refused: dict[str, str] = {}
    bare: list[fx.Node] = []
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(
            conv := modules[str(node.target)], nn.modules.conv._ConvNd
        ):
            why = _unfit(node, conv, barred) or unsupported(str(node.target), conv)  # type: ignore[arg-type]
            norm, function, missing = (None, None, "") if why else _norm_of(node, modules, barred, functions)
            if norm is not None and function is not None:
                heads.add(norm, (node, norm), function)
            else:
                refused[str(node.target)] = why or missing
                bare += [node] if missing == NO_NORM and node not in barred else []
    if halves:
        convs = {*bare, *(conv for conv, _ in heads.pairs.values())}
        for norm in graph.nodes:
            if norm not in heads.pairs and (function := _before(convs, norm, modules, barred, functions)):
                heads.add(norm, (None, norm), function)
    units = _units(graph, heads, modules, barred, functions, refused)
    while halves:
        outputs = {unit.output for unit in units}
        behind = [node for node in bare if node.args[0] in outputs and node not in heads.pairs]
        if not behind:
            break
        for node in behind:
            heads.add(node, (node, None))
            refused.pop(str(node.target), None)
        units = _units(graph, heads, modules, barred, functions, refused)
    return units, refused


def _units(
    graph: fx.Graph,
    heads: _Heads,
    modules: dict[str, nn.Module],
    barred: set[fx.Node],
    functions: frozenset[str],
    refused: dict[str, str],
) -> list[FusedUnit]:
    place = {node: i for i, node in enumerate(graph.nodes)}
    # BatchNorms called again and again, out of the trace's order if they took in what follows
    alone: set[str] = set()
    while True:
        units, taken = [], set()
        for head in graph.nodes:
            if head in heads.pairs and head not in taken:
                unit = _unit(head, heads, modules, barred, alone, functions, refused)
                taken.update(unit.nodes)
                units.append(unit)
        units.sort(key=lambda unit: place[unit.output])
        if not (late := _out_of_order(units, place)):
            return units
        alone |= late


def _out_of_order(units: list[FusedUnit], place: dict[fx.Node, int]) -> set[str]:
    """Return the BatchNorms of which a later call would move the running statistics before an earlier one."""
    last: dict[str, int] = {}
    late = set()
    for norm in (norm for unit in units for _, norm in unit.convs if norm is not None):
        if place[norm] < last.get(str(norm.target), 0):
            late.add(str(norm.target))
        last[str(norm.target)] = place[norm]
    return late


def _unfit(node: fx.Node, conv: nn.Module, barred: set[fx.Node]) -> str | None:
    """Return why no engine can run a convolution, whatever reads it; None where one can."""
    if type(conv) is not nn.Conv2d:
        return f"{type(conv).__name__} is not nn.Conv2d"
    if "forward" in vars(conv):
        return "its forward was replaced"
    if conv.weight.requires_grad or (conv.bias is not None and conv.bias.requires_grad):
        return "its weight or bias trains"
    if conv.padding_mode != "zeros":
        return f"padding_mode {conv.padding_mode!r}"
    if isinstance(conv.padding, str) and fixed_padding(conv) is None:
        return f"padding {conv.padding!r} with an even kernel"
    if len(node.args) != 1 or not isinstance(node.args[0], fx.Node) or node.kwargs:
        return "it is called in an unusual form"
    return "it shares a value with an in-place operation" if node.args[0] in barred else None


def _norm_of(
    node: fx.Node, modules: dict[str, nn.Module], barred: set[fx.Node], functions: frozenset[str]
) -> tuple[fx.Node | None, Function | None, str]:
    """Return the BatchNorm that alone reads a convolution, and what its forward ends with; or why there is
    none."""
    users = list(node.users)
    if (
        len(users) != 1
        or users[0].op != "call_module"
        or not isinstance(modules[str(users[0].target)], nn.BatchNorm2d)
    ):
        return None, None, NO_NORM
    if users[0].args != (node,) or users[0].kwargs:
        return None, None, "its BatchNorm is called in an unusual form"
    if users[0] in barred:
        return None, None, "it shares a value with an in-place operation"
    norm: Any = modules[str(users[0].target)]
    function = behaviour.function_of(norm)
    if function is None:
        return None, None, f"the {type(norm).__name__} behind it is not a batch norm and an activation"
    return (
        (users[0], function, "")
        if function.name in functions
        else (None, None, f"the engine has no {function.name}")
    )


def _before(
    convs: set[fx.Node | None],
    node: fx.Node,
    modules: dict[str, nn.Module],
    barred: set[fx.Node],
    functions: frozenset[str],
) -> Function | None:
    """Return what a BatchNorm's forward ends with, where it reads a value that no operation changes and one
    of these convolutions reads it, or its activation; else None."""
    norm: Any = modules[str(node.target)] if node.op == "call_module" else None
    if (
        not isinstance(norm, nn.BatchNorm2d)
        or len(node.args) != 1
        or node.kwargs
        or node in barred
        or node.args[0] in barred
    ):
        return None
    last = _only_user(node, barred)
    readers = {
        *node.users,
        *(last.users if last is not None and activations.of_node(last, modules) is not None else ()),
    }
    if convs.isdisjoint(readers):
        return None
    function = behaviour.function_of(norm)
    return function if function is not None and function.name in functions else None


def fixed_padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """Return the padding as two numbers; None if it differs between the sides."""
    if not isinstance(conv.padding, str):
        return (conv.padding[0], conv.padding[1])
    if conv.padding == "valid":
        return (0, 0)
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return None if any(t % 2 for t in total) else (total[0] // 2, total[1] // 2)


def _unit(
    head: fx.Node, heads: _Heads, modules: dict[str, nn.Module], barred: set[fx.Node], alone: set[str],
    functions: frozenset[str],
    refused: dict[str, str],
) -> FusedUnit:  # fmt: skip
    pairs, ends = heads.pairs, heads.ends
    unit = FusedUnit(
        [pairs[head]], None, ends[head], head, [node for node in pairs[head] if node is not None]
    )
    if str(head.target) in alone or unit.function != IDENTITY:
        return unit
    add = _only_user(head, barred)
    operands = _operands(add) if add is not None else None
    if add is not None and operands is not None and add not in barred:
        first, second = operands
        other = second if first is head else first
        rewrites_another = (
            mutates(add, modules)
            and first is not head
            and (len(first.users) > 1 or first.op == "placeholder")
        )
        if other is not head and not rewrites_another and other not in barred:
            if (
                other in pairs
                and len(other.users) == 1
                and str(other.target) not in alone
                and ends[other] == IDENTITY
            ):
                unit.convs = [pairs[first], pairs[second]]
                unit.nodes += [node for node in pairs[other] if node is not None]
            else:
                unit.residual = other
            unit.nodes.append(add)
            unit.output = add
    last = _only_user(unit.output, barred)
    function = None if last is None or last in barred else activations.of_node(last, modules)
    if last is not None and function is not None and function.name not in functions:
        refused[str(last.target)] = f"the engine has no {function.name}"
    elif last is not None and function is not None:
        unit.function, unit.output = function, last
        unit.nodes.append(last)
    return unit


def _only_user(node: fx.Node, barred: set[fx.Node]) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 and node not in barred else None


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the operands of an addition of two tensors."""
    called = node.op == "call_function" and node.target in ADDITIONS
    method = node.op == "call_method" and node.target in ("add", "add_")
    if not (called or method) or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    return (first, second) if isinstance(first, fx.Node) and isinstance(second, fx.Node) else None
