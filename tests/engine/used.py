"""What the tests of ordinary use share."""

import torch

from bench.oracle.networks import images
from bench.oracle.stock import error, tolerance

EXACT = tolerance(torch.float64)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients(model, expected, times=1.0):
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name in expected:
        assert error(found[name], expected[name] * times) <= EXACT, name


def is_fused(model):
    """Return whether a call saves no convolution's input: its backward node is ours."""
    z = model(images(2, dtype=next(model.parameters()).dtype))
    seen, todo = set(), [z.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [later for later, _ in node.next_functions]
    names = {type(node).__name__ for node in seen}
    return "ConvolutionBackward0" not in names and "RegionFunctionBackward" in names
