"""The bytes that a fused model saves for its backward."""

import itertools

import pytest
import torch

from bench.oracle.networks import images
from bench.oracle.stock import stock
from fastbn.engine import fused_forward
from fastbn.models.resnet import FastBNOnlyResNet

pytestmark = pytest.mark.usefixtures("no_silent_fallback")


def saved_bytes(model, x):
    """Return the bytes of distinct storages held between forward and backward, parameters aside; with what
    the model keeps packed."""
    held = {}

    def hold(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        z = model(x)
    for program in getattr(fused_forward(model), "_programs", {}).values():
        for region in program[1].children():
            for *_, packed in getattr(region, "_packs", {}).values():
                hold(packed)
    for tensor in itertools.chain(model.parameters(), model.buffers(), [x]):
        held.pop(tensor.untyped_storage().data_ptr(), None)
    del z
    return sum(held.values())


def test_saved_bytes_are_fewer_than_stock():
    """Stock saves each convolution's output and each ReLU's; fused the former and, in this engine, a byte an
    element
    for a ReLU after an addition: 9 bytes where stock has 16. Both grow with the batch; the packed weights,
    which do not, still weigh on the ratio at 32 images, as they would not at a training batch."""
    model = FastBNOnlyResNet(32, engine="reference")
    x = images(32, 32, 32, dtype=torch.float32)
    assert saved_bytes(model, x) <= 0.6 * saved_bytes(stock(model), x)


def test_saved_bytes_are_linear_in_depth():
    at = {
        d: saved_bytes(
            FastBNOnlyResNet(d, width=4, engine="reference"), images(4, 32, 32, dtype=torch.float32)
        )
        for d in (8, 14, 20)
    }
    assert at[20] - at[14] == at[14] - at[8] > 0
