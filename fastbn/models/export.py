"""A trained network for use without fastbn: torch's modules alone, its BatchNorms folded away, exported, or
as ONNX.

Each takes any network that torch.fx can trace, fused or not, and leaves it as it was.
"""

from __future__ import annotations

import collections
import copy
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastbn.engine.fuse import fuse
from fastbn.engine.onednn_workaround import unspare
from fastbn.errors import MachineError, UsageError
from fastbn.graph.trace.forward import trace


def to_torch(model: nn.Module) -> fx.GraphModule:
    """Return the same network of torch's own modules, in eval mode: same names, outputs and `requires_grad`,
    no class of fastbn's in it, so that what torch.save writes of it loads where fastbn is not installed. What
    its Python code decides is fixed as eval mode has it; a part that no trace keeps is called as it was
    written. Raises TypeError for a network of which that is the whole."""
    stock = fuse(copy.deepcopy(model), "stock").eval()
    unspare(stock)
    traced = trace(stock, {})
    for name, constant in traced.constants.items():
        stock.register_buffer(name, constant)
    graph = fx.Graph()  # one that knows of no tracer
    graph.output(graph.graph_copy(traced.graph, {}))
    for node in graph.nodes:
        node.type = None  # a type's name, where annotations are strings, can't be pickled
    return fx.GraphModule(stock, graph, type(model).__name__).eval()


def fold_bn(model: nn.Module) -> fx.GraphModule:
    """Return the network for inference, in eval mode: each BatchNorm that alone reads a convolution is merged
    into it, γ·r into the weight, β − μ·γ·r into the bias. Others stay. Raises TypeError where torch.fx can't
    trace it."""
    plain = to_torch(model)
    for norm, before in list(_foldable(plain)):
        conv: Any = plain.get_submodule(str(before.target))
        bn: Any = plain.get_submodule(str(norm.target))
        parent, _, name = str(before.target).rpartition(".")
        setattr(plain.get_submodule(parent), name, fuse_conv_bn_eval(conv, bn).requires_grad_(False))
        norm.replace_all_uses_with(before)
        plain.graph.erase_node(norm)
    plain.delete_all_unused_submodules()
    plain.recompile()
    return plain


def to_exported(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """Return torch.export's program of the network in eval mode, for a batch of any size of images like these
    (N ≥ 2, 3, H, W)."""
    if images.dim() != 4 or len(images) < 2:
        # 1 is fixed as 1
        raise UsageError(
            f"export needs example images (N, 3, H, W) with N of at least 2, got {tuple(images.shape)}"
        )
    return torch.export.export(to_torch(model), (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def to_onnx(model: nn.Module, images: Tensor, path: str | os.PathLike[str]) -> None:
    """Write the network in eval mode, BatchNorms folded, as one ONNX file: input "images" (N, 3, H, W) of any
    N, output "logits".

    images: an example of at least two. Raises MachineError where onnx and onnxscript are not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MachineError(
            f"ONNX export needs onnx and onnxscript ({error}); pip install 'fastbn[export]'"
        ) from error
    program = to_exported(fold_bn(model), images)
    exported = torch.onnx.export(
        program, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )
    assert exported is not None
    exported.save(os.fspath(path), external_data=False)


def _foldable(plain: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield (BatchNorm, the convolution before it) where each is called once, and the one alone reads the
    other."""
    called = collections.Counter(str(node.target) for node in plain.graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in plain.graph.nodes if node.op == "get_attr"}
    once = {
        node: plain.get_submodule(str(node.target))
        for node in plain.graph.nodes
        if called[str(node.target)] == 1
    }
    for node, norm in once.items():
        if (
            isinstance(norm, nn.BatchNorm2d)
            and type(norm).forward is nn.BatchNorm2d.forward
            and norm.running_mean is not None
        ):
            before = node.all_input_nodes[0]
            if (
                type(once.get(before)) is nn.Conv2d
                and len(before.users) == 1
                and not read & {str(node.target), str(before.target)}
            ):
                yield node, before
