"""Name the convolutions on the shortcuts of residual blocks, found by the network's shape,
whatever its modules are called."""

from __future__ import annotations

from torch import fx, nn

from fastbn.errors import UsageError
from fastbn.graph.match import ADDITIONS
from fastbn.graph.trace.forward import trace


def shortcuts(model: nn.Module, norms: tuple[type[nn.Module], ...]) -> list[str]:
    """Return the names of the convolutions on shortcuts, in the order of the additions: where a convolution
    (and at most `norms` after it) is added to a longer way from the same value. Raises UsageError for a model
    that torch.fx can't trace."""
    try:
        graph = trace(model, {}).graph
    except TypeError as error:
        raise UsageError(
            f"train='shortcut' is found in a torch.fx trace, and {type(model).__name__} has none: {error}"
        ) from error
    modules = dict(model.named_modules(remove_duplicate=False))
    place = {node: i for i, node in enumerate(graph.nodes)}
    names: list[str] = []
    for node in graph.nodes:
        operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
        added = (node.op == "call_function" and node.target in ADDITIONS) or (
            node.op == "call_method" and node.target in ("add", "add_")
        )
        if not added or len(operands) != 2:
            continue
        for operand, other in (operands, operands[::-1]):
            conv = _convolution(operand, modules, norms)
            beside = _convolution(other, modules, norms)
            if conv is None or beside is conv or (beside is not None and beside.args[0] is conv.args[0]):
                continue
            if _leads_to(conv.args[0], other, place) and str(conv.target) not in names:
                names.append(str(conv.target))
    return names


def _convolution(
    node: fx.Node, modules: dict[str, nn.Module], norms: tuple[type[nn.Module], ...]
) -> fx.Node | None:
    """Return the convolution whose output this is, but for the norms after it."""
    while node.op == "call_module" and not isinstance(modules[str(node.target)], nn.modules.conv._ConvNd):
        module, before = modules[str(node.target)], node.args[0] if node.args else None
        if not isinstance(module, norms) or not isinstance(before, fx.Node):
            return None
        node = before
    return node if node.op == "call_module" else None


def _leads_to(start: object, end: fx.Node, place: dict[fx.Node, int]) -> bool:
    """Return whether `end` is computed from `start`, which is not itself."""
    if not isinstance(start, fx.Node):
        return False
    waiting, seen = [end], {end}
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node is start:
                return True
            if node not in seen and place[node] > place[start]:
                seen.add(node)
                waiting.append(node)
    return False
