"""Take out of a trace the nodes that return what they are given, so that what stood around them
is adjacent."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx, nn

from fastbn.graph.behaviour import is_identity

DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d}


def look_through(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Remove identities, and dropouts that drop nothing: of p = 0, or in evaluation. Their reader reads
    what they read."""
    for node in list(graph.nodes):
        if passes(node, modules) and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def passes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether a node returns its first argument itself."""
    if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
        module = modules[str(node.target)]
        return is_identity(module) or (
            isinstance(module, nn.modules.dropout._DropoutNd)
            and not module.training
            and "forward" not in vars(module)
        )
    if node.op == "call_function" and node.target in DROPOUTS and len(node.args) == 1:
        given = node.kwargs
        return bool(given.get("p", 0.5) == 0) or given.get("training", True) is False
    return False
