"""Finds, in a traced network, what can run fused: convolution with a frozen weight -> BatchNorm [-> addition]
[-> ReLU].

Only torch's own modules and functions are named here, so any traceable network can match.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx, nn

ADDITIONS = {operator.add, operator.iadd, torch.add}
RELUS = {F.relu, torch.relu, F.relu_, torch.relu_}
VIEWS = {
    "view",
    "view_as",
    "reshape",
    "flatten",
    "unflatten",
    "permute",
    "transpose",
    "movedim",
    "squeeze",
    "unsqueeze",
    "expand",
}
VIEWS |= {"narrow", "select", "chunk", "split", "unbind", "getitem", "contiguous", "to", "detach", "dropout"}
VIEWS |= {
    "getattr",
    "float",
    "double",
    "half",
    "bfloat16",
    "type",
    "type_as",
    "cpu",
    "cuda",
    "t",
    "diagonal",
    "swapaxes",
    "expand_as",
}
IN_PLACE = {
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
}


@dataclasses.dataclass
class FusedUnit:
    """A join before it has numbers: its convolutions and their BatchNorms, the residual, and the node that
    is z."""

    convs: list[tuple[fx.Node, fx.Node]]
    residual: fx.Node | None
    relu: bool
    output: fx.Node
    nodes: list[fx.Node]

    @property
    def inputs(self) -> list[fx.Node]:
        found = [conv.args[0] for conv, _ in self.convs] + [self.residual]
        return [node for node in found if isinstance(node, fx.Node)]


def match(
    graph: fx.Graph, modules: dict[str, nn.Module], unsupported: Callable[[str, nn.Conv2d], str | None]
) -> tuple[list[FusedUnit], dict[str, str]]:
    """The units of a traced network in the order of their outputs, and why each other convolution runs
    stock."""
    barred = _mutated(graph, modules)
    convs: dict[fx.Node, fx.Node] = {}  # BatchNorm -> its convolution
    refused: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(
            conv := modules[str(node.target)], nn.modules.conv._ConvNd
        ):
            why = _why_not(node, conv, modules, barred) or unsupported(str(node.target), conv)  # type: ignore[arg-type]
            if why:
                refused[str(node.target)] = why
            else:
                convs[next(iter(node.users))] = node
    place = {node: i for i, node in enumerate(graph.nodes)}
    # BatchNorms called again and again, out of the trace's order if they took in what follows
    alone: set[str] = set()
    while True:
        units, taken = [], set()
        for norm in graph.nodes:
            if norm in convs and norm not in taken:
                unit = _unit(norm, convs, modules, barred, alone)
                taken.update(unit.nodes)
                units.append(unit)
        units.sort(key=lambda unit: place[unit.output])
        if not (late := _out_of_order(units, place)):
            return units, refused
        alone |= late


def _out_of_order(units: list[FusedUnit], place: dict[fx.Node, int]) -> set[str]:
    """BatchNorms of which a later call would move the running statistics before an earlier one."""
    last: dict[str, int] = {}
    found = set()
    for norm in (norm for unit in units for _, norm in unit.convs):
        if place[norm] < last.get(str(norm.target), 0):
            found.add(str(norm.target))
        last[str(norm.target)] = place[norm]
    return found


def _why_not(
    node: fx.Node, conv: nn.Module, modules: dict[str, nn.Module], barred: set[fx.Node]
) -> str | None:
    if type(conv) is not nn.Conv2d:
        return f"{type(conv).__name__} is not nn.Conv2d"
    if conv.weight.requires_grad or (conv.bias is not None and conv.bias.requires_grad):
        return "its weight or bias trains"
    if conv.padding_mode != "zeros":
        return f"padding_mode {conv.padding_mode!r}"
    if isinstance(conv.padding, str) and fixed_padding(conv) is None:
        return f"padding {conv.padding!r} with an even kernel"
    if len(node.args) != 1 or not isinstance(node.args[0], fx.Node) or node.kwargs:
        return "it is called in an unusual form"
    users = list(node.users)
    norm = modules.get(str(users[0].target)) if len(users) == 1 and users[0].op == "call_module" else None
    if isinstance(norm, nn.BatchNorm2d) and type(norm) is not nn.BatchNorm2d:
        return f"its BatchNorm is a {type(norm).__name__}, which has code of its own"
    if (
        len(users) != 1
        or users[0].op != "call_module"
        or type(modules[str(users[0].target)]) is not nn.BatchNorm2d
    ):
        return "its output does not go to a BatchNorm2d alone"
    if users[0].args != (node,) or users[0].kwargs:
        return "its BatchNorm is called in an unusual form"
    if node.args[0] in barred or users[0] in barred:
        return "it shares a value with an in-place operation"
    return None


def fixed_padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """The padding as two numbers; None if it differs between the sides."""
    if not isinstance(conv.padding, str):
        return (conv.padding[0], conv.padding[1])
    if conv.padding == "valid":
        return (0, 0)
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return None if any(t % 2 for t in total) else (total[0] // 2, total[1] // 2)


def _unit(
    norm: fx.Node,
    convs: dict[fx.Node, fx.Node],
    modules: dict[str, nn.Module],
    barred: set[fx.Node],
    alone: set[str],
) -> FusedUnit:
    unit = FusedUnit([(convs[norm], norm)], None, False, norm, [convs[norm], norm])
    if str(norm.target) in alone:
        return unit
    add = _only_user(norm, barred)
    operands = _operands(add) if add is not None else None
    if add is not None and operands is not None and add not in barred:
        first, second = operands
        other = second if first is norm else first
        rewrites_another = (
            mutates(add, modules)
            and first is not norm
            and (len(first.users) > 1 or first.op == "placeholder")
        )
        if other is not norm and not rewrites_another and other not in barred:
            if other in convs and len(other.users) == 1 and str(other.target) not in alone:
                unit.convs = [(convs[first], first), (convs[second], second)]
                unit.nodes += [convs[other], other]
            else:
                unit.residual = other
            unit.nodes.append(add)
            unit.output = add
    relu = _only_user(unit.output, barred)
    if relu is not None and _is_relu(relu, modules) and relu not in barred:
        unit.relu, unit.output = True, relu
        unit.nodes.append(relu)
    return unit


def _only_user(node: fx.Node, barred: set[fx.Node]) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 and node not in barred else None


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Of an addition of two tensors."""
    called = node.op == "call_function" and node.target in ADDITIONS
    method = node.op == "call_method" and node.target in ("add", "add_")
    if not (called or method) or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    return (first, second) if isinstance(first, fx.Node) and isinstance(second, fx.Node) else None


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.ReLU
    return (node.op == "call_function" and node.target in RELUS) or (
        node.op == "call_method" and node.target in ("relu", "relu_")
    )


def mutates(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node changes its first argument in place."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and (
        node.target in IN_PLACE or name.endswith("_") or bool(node.kwargs.get("inplace"))
    )


def _mutated(graph: fx.Graph, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """Values changed in place while something else reads them too: fusing across the change could reorder
    the two."""
    found = set()
    for node in graph.nodes:
        if mutates(node, modules):
            target = node.args[0] if node.args else None
            while isinstance(target, fx.Node):
                if len(target.users) > 1:
                    found.add(target)
                target = target.args[0] if may_view(target, modules) and target.args else None
    return found


def may_view(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node's value may share its first argument's memory."""
    if node.op == "call_module":
        return isinstance(
            modules[str(node.target)], (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
        )
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and (name in VIEWS or mutates(node, modules))
