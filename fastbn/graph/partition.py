"""Gather matched units into maximal regions, and orders regions and stock nodes so that each
runs after what it reads.

A region runs as one function, so nothing outside may lie between two of its units: a unit joins the region of
a value that it reads only if none of its other inputs depends on that region from outside."""

from __future__ import annotations

import heapq

from torch import fx

from fastbn.graph.effects import After
from fastbn.graph.match import FusedUnit


def partition(graph: fx.Graph, units: list[FusedUnit], after: After | None = None) -> list[list[FusedUnit]]:
    """Return the regions, each a list of units in the order in which they run. after: nodes that must follow
    others."""
    after = after or {}
    unit_of = {unit.output: unit for unit in units}
    inner = {node for unit in units for node in unit.nodes} - set(unit_of)
    region_of: dict[fx.Node, int] = {}  # a unit's output -> its region
    members: dict[int, list[FusedUnit]] = {}
    behind: dict[int, set[int]] = {}  # region -> the regions that it reads, at any distance
    reads: dict[fx.Node, set[int]] = {}  # node -> the regions that it depends on

    def upstream(nodes: list[fx.Node]) -> set[int]:
        direct = set().union(*(reads[node] for node in nodes)) if nodes else set()
        return direct.union(*(behind[region] for region in direct))

    for node in graph.nodes:
        unit = unit_of.get(node)
        if unit is None:
            if node not in inner:
                reads[node] = set().union(
                    *(reads[source] for source in (*node.all_input_nodes, *after.get(node, ())))
                )
            continue
        home: int | None = None
        for candidate in dict.fromkeys(region_of[source] for source in unit.inputs if source in region_of):
            outside = [source for source in unit.inputs if region_of.get(source) != candidate]
            if candidate in upstream(outside):
                continue
            if home is None:
                home = candidate
            elif candidate not in behind[home] and home not in behind[candidate]:
                members[home] += members.pop(candidate)  # two branches meet: one region
                for output, region in region_of.items():
                    region_of[output] = home if region == candidate else region
                for regions in (*reads.values(), *behind.values()):
                    if candidate in regions:
                        regions.discard(candidate)
                        regions.add(home)
                behind[home] |= behind.pop(candidate)
        if home is None:
            home = len(graph.nodes) + len(region_of)  # a number not used before
            members[home], behind[home] = [], set()
        members[home].append(unit)
        region_of[node] = home
        outside = [source for source in unit.inputs if region_of.get(source) != home]
        behind[home] |= upstream(outside)
        for later in behind.values():
            if home in later:
                later |= behind[home]
        reads[node] = {home}
    place = {node: i for i, node in enumerate(graph.nodes)}
    return [sorted(region, key=lambda unit: place[unit.output]) for region in members.values()]


def order(graph: fx.Graph, regions: list[list[FusedUnit]], after: After | None = None) -> list[fx.Node | int]:
    """Return stock nodes and regions (by index) in an order that runs: the trace's own, a region as late as
    its last unit."""
    after = after or {}
    owner: dict[fx.Node, fx.Node | int] = {
        node: i for i, region in enumerate(regions) for unit in region for node in unit.nodes
    }
    last: dict[fx.Node | int, int] = {}
    needs: dict[fx.Node | int, set[fx.Node | int]] = {}
    feeds: dict[fx.Node | int, list[fx.Node | int]] = {}
    for place, node in enumerate(graph.nodes):
        group = owner.get(node, node)
        last[group] = place
        for source in {
            owner.get(source, source) for source in (*node.all_input_nodes, *after.get(node, ()))
        } - {group}:
            if source not in needs.setdefault(group, set()):
                needs[group].add(source)
                feeds.setdefault(source, []).append(group)
    ready = [(place, i, group) for i, (group, place) in enumerate(last.items()) if not needs.get(group)]
    heapq.heapify(ready)
    result = []
    while ready:
        _, i, group = heapq.heappop(ready)
        result.append(group)
        for later in feeds.get(group, []):
            needs[later].discard(group)
            if not needs[later]:
                heapq.heappush(ready, (last[later], i, later))
    assert len(result) == len(last), "a region and a stock node wait for each other"
    return result
