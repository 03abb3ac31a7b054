"""Puts images back to NCHW where a program's reader needs it. Regions make channels-last images; what comes
in NCHW goes out NCHW, as it does stock, but other regions and operations of either layout read them as they
are."""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastbn.graph.aliasing import may_view, memory_of, mutates

# they read images in either layout, and make new ones in the layout that they read
MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Conv2d, nn.BatchNorm2d,
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.LeakyReLU, nn.Mish,
)  # fmt: skip
FUNCTIONS = {
    torch.cat, torch.add, torch.sub, torch.mul, operator.add, operator.sub, operator.mul, torch.sigmoid,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.relu, F.relu6, F.silu, F.gelu, F.hardswish,
    F.hardsigmoid, F.leaky_relu, F.mish, F.interpolate, torch.mean,
}  # fmt: skip
METHODS = {"mean", "sigmoid"}
# they give a part of what they read, in its memory and strides
PARTS = {"getitem", "chunk", "split", "narrow"}
# they read a tensor's form, and none of its memory
FORM = {"size", "dim", "numel", "shape", "ndim", "dtype", "device"}


def is_nchw(x: object) -> bool | None:
    """Return whether images are in NCHW; None where one channel, or one pixel, makes the layouts the same."""
    if not isinstance(x, Tensor) or x.dim() != 4:
        return True
    if x.is_contiguous():
        return None if x.is_contiguous(memory_format=torch.channels_last) else True
    return x.stride(1) != 1  # a part of images, or several times the same


def given_layout(z: Any, *nchw: bool | None) -> Any:
    """Return what was made of channels-last images, or a part of them, in NCHW where any that it comes of
    were, or none were channels-last; else what was given."""
    return z.contiguous() if isinstance(z, Tensor) and (any(nchw) or False not in nchw) else z


def put_back(
    program: fx.Graph, regions: dict[fx.Node, tuple[fx.Node, ...]], modules: dict[str, nn.Module]
) -> None:
    """Put given_layout where an image that a region made, or an operation of either layout made from one, is
    read by anything else.

    regions: what each region's call reads. modules: of the program, by their targets."""
    written = {
        _owner(read, modules) for n in program.nodes if _writes(n, modules) for read in n.all_input_nodes
    }
    as_it_is = functools.partial(_reads_either, regions=regions, modules=modules, written=written)
    sources: dict[fx.Node, tuple[fx.Node, ...]] = {}  # of such an image: whose layout it has stock
    layouts: dict[fx.Node, fx.Node] = {}  # of a source: its is_nchw
    for node in list(program.nodes):
        call = node.args[0] if node.op == "call_function" and node.args else None
        if isinstance(call, fx.Node) and call in regions:
            read = regions[call]
        elif node not in regions and as_it_is(node):
            read = tuple(n for n in node.all_input_nodes if n in sources)
        else:
            continue
        if not read:
            continue
        sources[node] = tuple(dict.fromkeys(source for n in read for source in sources.get(n, (n,))))
        others = [user for user in node.users if not as_it_is(user)]
        if not others:
            continue
        for source in sources[node]:
            if source not in layouts:
                with program.inserting_after(source):
                    layouts[source] = program.call_function(is_nchw, (source,))
        with program.inserting_after(node):
            nchw = (layouts[source] for source in sources[node])
            back = program.call_function(given_layout, (node, *nchw))
        # what may be written to, itself or by a view of it, is one tensor for all that read it
        shared = written and any(user.op != "output" for user in others)
        for user in list(node.users) if shared else others:
            if user is not back:
                user.replace_input_with(node, back)


def _writes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether an operation writes to something that it reads."""
    return mutates(node, modules) or node.kwargs.get("out") is not None


def _owner(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """Return the node in whose memory a value may lie."""
    *_, owner = memory_of(node, modules)
    return owner


def _reads_either(
    node: fx.Node,
    regions: dict[fx.Node, tuple[fx.Node, ...]],
    modules: dict[str, nn.Module],
    written: set[fx.Node],
) -> bool:
    """Return whether a reader takes an image in either layout, and writes to nothing."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node in regions or (node.op == "call_function" and node.target is getattr and node.args[1] in FORM):
        return True
    if node.op == "call_module":
        known: bool = type(modules.get(str(node.target))) in MODULES
    elif node.op == "call_method":
        known = name in METHODS or name in FORM
    else:
        known = node.target in FUNCTIONS
    if known:
        return not _writes(node, modules) and not may_view(node, modules)
    return _is_part(node, name) and _owner(node, modules) not in written


def _is_part(node: fx.Node, name: str) -> bool:
    """Return whether a reader takes a part of an image; of several parts, each is taken by its number."""
    if node.op not in ("call_function", "call_method") or name not in PARTS:
        return False
    return name not in ("chunk", "split") or all(user.target is operator.getitem for user in node.users)
