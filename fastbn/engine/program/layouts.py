"""Puts images back to NCHW where a program's reader needs it. Regions make channels-last images; what comes
in NCHW goes out NCHW, as it does stock, but other regions and operations of either layout read them as they
are."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastbn.graph.aliasing import may_view, mutates

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
# they read a tensor's form, and none of its memory
FORM = {"size", "dim", "numel", "shape", "ndim", "dtype", "device"}


def is_nchw(x: object) -> bool:
    """Return whether images are in NCHW; one channel, or one pixel, counts as such."""
    return isinstance(x, Tensor) and x.is_contiguous()


def given_layout(z: Tensor, *nchw: bool) -> Tensor:
    """Return channels-last images (N, C, H, W) in NCHW if all that they come of were; else what was given."""
    made = isinstance(z, Tensor) and z.dim() == 4 and z.is_contiguous(memory_format=torch.channels_last)
    return z.contiguous() if made and all(nchw) else z


def put_back(
    program: fx.Graph, regions: dict[fx.Node, tuple[fx.Node, ...]], modules: dict[str, nn.Module]
) -> None:
    """Put given_layout where an image that a region made, or an operation of either layout made from one, is
    read by anything else. regions: what each region's call reads."""
    sources: dict[fx.Node, tuple[fx.Node, ...]] = {}  # of such an image: whose layout it has stock
    layouts: dict[fx.Node, fx.Node] = {}  # of a source: its is_nchw
    for node in list(program.nodes):
        call = node.args[0] if node.op == "call_function" and node.args else None
        if isinstance(call, fx.Node) and call in regions:
            read = regions[call]
        elif _either(node, modules):
            read = tuple(n for n in node.all_input_nodes if n in sources)
        else:
            continue
        if not read:
            continue
        sources[node] = tuple(dict.fromkeys(source for n in read for source in sources.get(n, (n,))))
        others = [user for user in node.users if not _as_it_is(user, regions, modules)]
        if not others:
            continue
        for source in sources[node]:
            if source not in layouts:
                with program.inserting_after(source):
                    layouts[source] = program.call_function(is_nchw, (source,))
        with program.inserting_after(node):
            nchw = (layouts[source] for source in sources[node])
            back = program.call_function(given_layout, (node, *nchw))
        # what shares memory, or is written to, is one tensor for all that read it
        shared = any(mutates(u, modules) or may_view(u, modules) for u in others if u.op != "output")
        for user in list(node.users) if shared else others:
            if user is not back:
                user.replace_input_with(node, back)


def _as_it_is(
    node: fx.Node, regions: dict[fx.Node, tuple[fx.Node, ...]], modules: dict[str, nn.Module]
) -> bool:
    """Whether a reader of an image takes it in either layout."""
    form = node.args[1] if node.op == "call_function" and node.target is getattr else node.target
    return node in regions or form in FORM or _either(node, modules)


def _either(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether an operation takes either layout, and neither writes to what it reads nor shares its memory."""
    if node.op == "call_module":
        known = type(modules.get(str(node.target))) in MODULES
    else:
        known = node.target in (METHODS if node.op == "call_method" else FUNCTIONS)
    return known and not mutates(node, modules) and not may_view(node, modules)
