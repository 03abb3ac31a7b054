"""Reads the graph off a trace, and builds the program that runs its regions and stock nodes in turn."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, fx, nn

from fastbn.engine.interface import Engine
from fastbn.engine.program.layouts import put_back
from fastbn.engine.region import FusedRegion
from fastbn.engine.weight_cache import WeightCache
from fastbn.graph import halves
from fastbn.graph.effects import effects
from fastbn.graph.match import FusedUnit, fixed_padding, match
from fastbn.graph.partition import order, partition
from fastbn.graph.regions import Conv, Graph, Join, Region
from fastbn.graph.trace.forward import trace
from fastbn.graph.trace.tracer import Traced


def read(
    model: nn.Module, constants: dict[str, Any], engine: Engine, packs: WeightCache
) -> tuple[Graph, fx.GraphModule]:
    """The graph, and the same computation with every region replaced by one call of this engine."""
    return build(model, trace(model, constants), engine, packs)


def build(
    model: nn.Module, trace: Traced, engine: Engine, packs: WeightCache
) -> tuple[Graph, fx.GraphModule]:
    """As read, of a trace."""
    traced = trace.graph
    modules = dict(model.named_modules(remove_duplicate=False))
    unsupported = lambda name, conv: engine.supports(_conv(name, "", conv, 0, 0))  # noqa: E731
    units, refused = match(traced, modules, unsupported, engine.functions, engine.halves)
    after = effects(traced, units, modules)
    groups = partition(traced, units, after)
    plan = order(traced, groups, after)
    groups_in_order = [groups[item] for item in plan if isinstance(item, int)]
    built = [_Builder(group, modules) for group in groups_in_order]
    program = fx.Graph()
    root: dict[str, Any] = {}
    env: dict[fx.Node, fx.Node] = {}
    regions, calls = iter(enumerate(built)), dict[fx.Node, tuple[fx.Node, ...]]()
    for item in plan:
        if isinstance(item, int):
            number, builder = next(regions)
            root[f"region{number}"] = FusedRegion(
                builder.region, engine, builder.pairs, builder.stock(modules), packs
            )
            read = tuple(env[node] for node in builder.inputs)
            call = program.call_module(f"region{number}", read)
            calls[call] = read
            for i, node in enumerate(builder.outputs):
                env[node] = program.call_function(_pick, (call, i))
        elif item.op == "get_attr":
            owner, _, name = str(item.target).rpartition(".")
            held = (
                _Constant(trace.constants[name])
                if name in trace.constants
                else Attribute(model.get_submodule(owner), name)
            )
            root[f"attribute{len(root)}"] = held
            env[item] = program.call_module(f"attribute{len(root) - 1}")
        else:
            env[item] = program.node_copy(item, lambda node: env[node])
            if item.op == "call_module":
                root[str(item.target)] = model.get_submodule(str(item.target))
    put_back(program, calls, modules | root)
    left = [node for node in plan if isinstance(node, fx.Node) and node.op.startswith("call_")]
    reasons = refused | trace.written
    stock = [(_title(node), reasons.get(str(node.target), "")) for node in left]
    return Graph(tuple(builder.region for builder in built), tuple(stock)), fx.GraphModule(
        root, program, type(model).__name__
    )


def _pick(values: tuple[Any, ...], i: int) -> Any:
    return values[i]


def _title(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _conv(name: str, norm: str, conv: nn.Conv2d, source: int, slot: int) -> Conv:
    padding = fixed_padding(conv)
    assert padding is not None
    kernel, stride, dilation = (
        (value[0], value[1]) for value in (conv.kernel_size, conv.stride, conv.dilation)
    )
    return Conv(
        name,
        norm,
        source,
        conv.in_channels,
        conv.out_channels,
        kernel,
        stride,
        padding,
        dilation,
        conv.groups,
        slot,
    )


class Attribute(nn.Module):
    """A parameter or a buffer, looked up at each call: .to() and users exchange them."""

    def __init__(self, owner: nn.Module, name: str):
        super().__init__()
        self._owner, self._name = [owner], name  # in a list: it is the model's own submodule, not this one's

    def forward(self) -> Any:
        return getattr(self._owner[0], self._name)


class _Constant(nn.Module):
    """A tensor from outside the model."""

    def __init__(self, tensor: Tensor):
        super().__init__()
        self._held = [tensor]  # in a list: .to() is for the model's own

    def forward(self) -> Tensor:
        return self._held[0]


class _Builder:
    """Numbers a region's values and convolutions."""

    def __init__(self, units: list[FusedUnit], modules: dict[str, nn.Module]):
        self.units = units
        made = {unit.output for unit in units}
        self.inputs = list(dict.fromkeys(node for unit in units for node in unit.inputs if node not in made))
        inside = {node for unit in units for node in unit.nodes}
        self.outputs = [
            unit.output for unit in units if any(user not in inside for user in unit.output.users)
        ]
        self.pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
        number = {node: i for i, node in enumerate(self.inputs)}
        joins, slot = [], 0
        for unit in units:
            convs = []
            for conv_node, norm_node in unit.convs:
                first: Any = conv_node or norm_node
                source: Any = first.args[0]
                norm: Any = modules[str(norm_node.target)] if norm_node else None
                module: Any = modules[str(conv_node.target)] if conv_node else halves.copying(norm)
                norm = norm or halves.unchanging(module)
                name, reader = (str(node.target) if node else "" for node in (conv_node, norm_node))
                conv = _conv(name, reader, module, number[source], slot)
                convs.append(dataclasses.replace(conv, copies=conv_node is None, bare=norm_node is None))
                slot += module.out_channels
                self.pairs.append((module, norm))
            residual = None if unit.residual is None else number[unit.residual]
            number[unit.output] = len(number)
            joins.append(Join(number[unit.output], tuple(convs), residual, unit.function))
        self.region = Region(len(self.inputs), tuple(joins), tuple(number[node] for node in self.outputs))

    def stock(self, modules: dict[str, nn.Module]) -> fx.GraphModule:
        """The same region as ordinary nodes."""
        graph = fx.Graph()
        env = {node: graph.placeholder(f"x{i}") for i, node in enumerate(self.inputs)}
        for unit in self.units:
            for node in unit.nodes:
                env[node] = graph.node_copy(node, lambda n: env[n])
        graph.output(tuple(env[node] for node in self.outputs))
        root = {
            str(node.target): modules[str(node.target)] for node in graph.nodes if node.op == "call_module"
        }
        return fx.GraphModule(root, graph, "StockRegion")
