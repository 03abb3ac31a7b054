"""Blocks whose traffic is counted."""

from regions import conv

from fastbn.graph.activations import RELU
from fastbn.graph.regions import Join, Region
from fastbn.planning.cost import total


def basic_blocks(count):
    """Value 0 comes in; block k reads value 2k: 2k+1 = relu(a(2k)); 2k+2 = relu(b(2k+1) + 2k). The last is
    handed out."""
    joins = []
    for k in range(count):
        joins.append(Join(2 * k + 1, (conv(f"{k}.a", 2 * k, 4, 4),), None, RELU))
        joins.append(Join(2 * k + 2, (conv(f"{k}.b", 2 * k + 1, 4, 4),), 2 * k, RELU))
    return Region(1, tuple(joins), (2 * count,))


BLOCK = ((2, 4, 8, 8),)


def moved(passes, name=""):
    """Return (read, written) of the passes whose name begins so."""
    found = total(each for each in passes if each.name.startswith(name))
    return found.read, found.written
