"""Which operations of a trace change a value in place, and which share its memory."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

# operations whose result may share their argument's memory
VIEWS = frozenset(
    [
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
        "narrow",
        "select",
        "chunk",
        "split",
        "unbind",
        "getitem",
        "contiguous",
        "to",
        "detach",
        "dropout",
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
        "swapdims",
        "moveaxis",
        "ravel",
        "unfold",
        "as_strided",
        "broadcast_to",
        "split_with_sizes",
        "tensor_split",
        "hsplit",
        "vsplit",
        "dsplit",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
        "real",
        "pos",
        "einsum",
        "alpha_dropout",
        "adjoint",
    ]
)
IN_PLACE = {
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
}


def mutates(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether a node changes its first argument in place."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and (
        node.target in IN_PLACE or name.endswith("_") or bool(node.kwargs.get("inplace"))
    )


def mutated(graph: fx.Graph, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """Return the values that are changed in place while something else reads them too: fusing across the
    change could reorder the two."""
    changed: set[fx.Node] = set()
    for node in graph.nodes:
        if mutates(node, modules) and node.args:
            changed.update(n for n in memory_of(node.args[0], modules) if len(n.users) > 1)
    return changed


def memory_of(value: Any, modules: dict[str, nn.Module]) -> Iterator[fx.Node]:
    """Yield a node and what it may be a view of, in turn; the last owns the memory. Of what is no node,
    nothing."""
    while isinstance(value, fx.Node):
        yield value
        value = next(iter(value.all_input_nodes), None) if may_view(value, modules) else None


def may_view(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether a node's value may share its first argument's memory."""
    if node.op == "call_module":
        return isinstance(
            modules[str(node.target)], (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
        )
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and (name in VIEWS or mutates(node, modules))
