"""Say which nodes must keep the trace's order though neither reads the other: what draws random
numbers, and what is edited in place."""

from __future__ import annotations

from torch import fx, nn

from fastbn.graph.aliasing import may_view, memory_of, mutates
from fastbn.graph.match import FusedUnit

After = dict[fx.Node, list[fx.Node]]  # by node: earlier nodes that it must follow
DRAWS = (
    "rand",
    "drop",
    "bernoulli",
    "normal",
    "multinomial",
    "uniform",
    "rrelu",
    "gumbel",
    "poisson",
    "exponential",
)
# modules whose functions draw only where their name says so
QUIET = ("torch", "math", "_operator", "builtins")


def effects(graph: fx.Graph, units: list[FusedUnit], modules: dict[str, nn.Module]) -> After:
    """Return the nodes outside the units that must follow others."""
    inner = {node for unit in units for node in unit.nodes}
    after: After = {}
    outside = [node for node in graph.nodes if node not in inner]
    last: fx.Node | None = None
    for node in outside:
        if _draws(node, modules):
            if last is not None:
                after.setdefault(node, []).append(last)
            last = node
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in outside:
        if mutates(node, modules) and node.args and isinstance(node.args[0], fx.Node):
            for user in _readers(node.args[0], modules):
                if user is not node and user not in inner:
                    first, second = sorted((node, user), key=place.__getitem__)
                    after.setdefault(second, []).append(first)
    return after


def _draws(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether a node may draw random numbers, or do what only its own code knows."""
    if node.op == "call_module":
        kind = type(modules[str(node.target)])
        return (
            not kind.__module__.startswith("torch.nn")
            or "Dropout" in kind.__name__
            or kind.__name__ == "RReLU"
        )
    if not node.op.startswith("call_"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    origin = (
        "torch" if isinstance(node.target, str) else str(getattr(node.target, "__module__", None) or "torch")
    )
    return any(word in name for word in DRAWS) or not origin.startswith(QUIET)


def _readers(value: fx.Node, modules: dict[str, nn.Module]) -> list[fx.Node]:
    """Return the nodes that read a value, or another name of its memory."""
    *_, owner = memory_of(value, modules)
    readers: dict[fx.Node, None] = {}
    waiting = [owner]
    while waiting:
        for user in waiting.pop().users:
            if user not in readers and may_view(user, modules):
                waiting.append(user)
            readers[user] = None
    return list(readers)
