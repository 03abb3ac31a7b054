"""Layouts of images: what comes in NCHW goes out NCHW; between regions only what must be is put back."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastbn import freeze, fuse
from fastbn.engine import fused_forward
from fastbn.engine.program.layouts import given_layout


def unit(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Branches(nn.Module):
    """Two regions, their concatenation, a pool, a region; `read` reads the last."""

    def __init__(self, read):
        super().__init__()
        self.a, self.b, self.last, self.pool = unit(3, 4), unit(3, 8), unit(12, 6)[:2], nn.MaxPool2d(2)
        self.read = read

    def forward(self, x):
        z = torch.cat([self.a(x), self.pool(F.pad(self.b(x), (4, 4, 4, 4)))], 1)
        return self.read(self.last(self.pool(z)))


def edited(z):
    other = z * 2
    z.add_(1)
    return other + z


def part_edited(z):
    z[:, 1:].mul_(3)
    return F.pad(z, (1, 1))


def viewed(z, view):
    view(z).mul_(2)
    return F.relu6(z)


def out_of(z):
    y = F.max_pool2d(z, 1)
    torch.add(y, 1, out=y)
    return F.pad(y, (1, 1))


READS = {
    "the result": lambda z: z,
    "view": lambda z: z.view(z.size(0), -1),
    "two readers": lambda z: z.view(z.size(0), -1).sum(1) + F.max_pool2d(z, 2).sum((1, 2, 3)),
    "written to": lambda z: edited(z) + F.relu(z),
    "an alias written to": lambda z: (nn.Identity()(z).mul_(3), z + 1)[1],
    "a shape": lambda z: z.mean((2, 3)).view(z.size(0), z.shape[1]),
    "parts": lambda z: torch.cat([F.pad(z[:, 2:], (1, 1)), F.pad(z.chunk(2, 1)[1], (1, 1))], 1),
    "a part written to": lambda z: part_edited(F.avg_pool2d(z, 1)),
    "parts by number": lambda z: F.pad(z.split(2, 1)[1], (1, 1)) + F.pad(z.split(2, 1)[2], (1, 1)),
    "a view by another name written to": lambda z: viewed(F.avg_pool2d(z, 1), torch.ravel),
    "swapped dimensions written to": lambda z: viewed(F.avg_pool2d(z, 1), lambda x: torch.swapdims(x, 1, 2)),
    "an image": lambda z: z[0].view(-1) + z[1].view(-1),
    "every other channel": lambda z: z[:, ::2].view(-1, 4, 4).sum(0) + z[:, 0].reshape(-1, 4, 4).sum(0),
    "a row": lambda z: z[:, :, 0].view(-1, 4),
    "more dimensions": lambda z: (z[:, None] * 2).view(2, -1),
    "a sigmoid's row": lambda z: torch.sigmoid(z[:, :, 1]).view(2, -1),
    "flattened": lambda z: torch.flatten(F.adaptive_avg_pool2d(z, 2), 1),
}


# views that stock refuses of channels-last images
REFUSED = (
    "view",
    "two readers",
    "an image",
    "every other channel",
    "a row",
    "more dimensions",
    "a sigmoid's row",
)
CASES = [(name, torch.contiguous_format) for name in READS] + [
    (name, torch.channels_last) for name in READS if name not in REFUSED
]


@pytest.mark.filterwarnings("error:fastbn runs")
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_as_stock(name, layout):
    read = READS[name]
    torch.manual_seed(0)
    stock, fused = (freeze(Branches(read)).double() for _ in range(2))
    fused.load_state_dict(stock.state_dict())
    fuse(fused, "reference")
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64).to(memory_format=layout)
    for _ in range(2):
        expected, found = stock(x), fused(x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert found.is_contiguous() or not expected.is_contiguous()
        dz = torch.randn_like(expected)
        expected.backward(dz)
        found.backward(dz)
    for (key, one), (_, other) in zip(stock.named_parameters(), fused.named_parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-8, atol=1e-8, msg=key)
    for (key, one), (_, other) in zip(stock.named_buffers(), fused.named_buffers(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9, msg=key)


@torch.no_grad()
def test_out_is_written_to():
    stock, fused = freeze(Branches(out_of)), fuse(freeze(Branches(out_of)), "reference")
    fused.load_state_dict(stock.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fused(x), stock(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "x",
    [torch.randn(2, 3, 10, 10)[:, :, 1:-1, 1:-1], torch.randn(2, 3, 8, 8).mT],
    ids=["cropped", "transposed"],
)
def test_images_that_are_not_contiguous_are_nchw(x):
    net = freeze(Branches(READS["view"]))
    torch.testing.assert_close(fuse(copy.deepcopy(net), "reference")(x), net(x), rtol=1e-4, atol=1e-4)


def test_regions_read_what_regions_made():
    """Of three regions the second's is read by an operation that is not known to take either layout."""
    model = fuse(freeze(Branches(READS["the result"])), "reference")
    model(torch.randn(2, 3, 8, 8))
    ((_, program),) = fused_forward(model)._programs.values()
    back = [node for node in program.graph.nodes if node.target is given_layout]
    read_by = [{user.target if user.op != "output" else "output" for user in node.users} for node in back]
    assert read_by == [{F.pad}, {"output"}]
