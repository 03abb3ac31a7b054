"""Convolutions of regions that tests write by hand."""

from fastbn.graph.regions import Conv


def conv(name, source, inside, outside, kernel=3, stride=1, padding=None, dilation=1, slot=0):
    """Return a convolution with its BatchNorm; its padding keeps the image's size unless given."""
    both = [(n, n) for n in (kernel, stride, kernel // 2 if padding is None else padding, dilation)]
    return Conv(name, f"{name}_bn", source, inside, outside, *both, 1, slot)
