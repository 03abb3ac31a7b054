"""The drop-in under DistributedDataParallel in a loop of one's own: the gradients of one process that
takes the parts in turn."""

import copy
import gc

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from nets import resnet
from ranks import together
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bench.oracle.networks import flip_free, images
from bench.oracle.stock import error, tolerance
from fastbn.engine import fuse

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

STEPS, BATCH = 3, 6


class Branched(nn.Module):
    """A network of which a part may stay unused."""

    def __init__(self):
        super().__init__()
        self.net = resnet()
        self.aside = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.net(x)


def model_of(kind, dtype, seed=0):
    model = Branched() if kind == "find_unused_parameters" else resnet(seed=seed)
    return (flip_free(model) if dtype == torch.float32 else model).to(dtype).train()


def loss_of(model, step, dtype, part):
    labels = torch.arange(BATCH) % 10
    parts = images(BATCH, seed=step, dtype=dtype).chunk(2)[part]
    return F.cross_entropy(model(parts), labels.chunk(2)[part])


def steps(model, parts, dtype, backward):
    """Gradients of each step, and the state in the end."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    found = []
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, step, parts, dtype)
        found.append(
            [None if p.grad is None else p.grad.clone() for p in model.parameters() if p.requires_grad]
        )
        optimizer.step()
    return found, model.state_dict()


def by_parts(model, step, parts, dtype):
    """One process: the running statistics are those of the first part, as DistributedDataParallel's are
    its first rank's."""
    for part in reversed(parts):
        before = copy.deepcopy(dict(model.named_buffers()))
        (loss_of(model, step, dtype, part) / len(parts)).backward()
        if part:
            model.load_state_dict(before, strict=False)


def of_one(model, step, parts, dtype):
    loss_of(model, step, dtype, *parts).backward()


def accumulated(model, step, parts, dtype):
    with model.no_sync():
        loss_of(model, step, dtype, *parts).backward()
    loss_of(model, step, dtype, *parts).backward()


def wrapped(kind, engine, dtype):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = fuse(model_of(kind, dtype, seed=0 if kind == "find_unused_parameters" else rank), engine)
    buffers = copy.deepcopy(dict(model.named_buffers()))
    with torch.no_grad():
        # packs the weights, which DistributedDataParallel then replaces by the first rank's
        loss_of(model, 0, dtype, rank)
    model.load_state_dict(buffers, strict=False)
    ddp = DistributedDataParallel(model, **({kind: True} if kind not in ("plain", "no_sync") else {}))
    found = steps(ddp, [rank], dtype, accumulated if kind == "no_sync" else of_one)
    # before the group: were the reducer the last to hold it, its end would wait, with Python's lock, for a
    # thread that wants it
    del ddp
    gc.collect()
    dist.destroy_process_group()
    return found


def assert_same(results, expected, tolerance):
    (gradients, state), (wanted, last) = results[0], expected
    for step, own in zip(gradients, wanted, strict=True):
        for g, other in zip(step, own, strict=True):
            assert (
                (g is None or not g.any())
                if other is None
                else (g - other).norm() < tolerance * other.norm().clamp(min=0.1)
            )
    for name, t in last.items():
        found = state[f"module.{name}"].double()
        assert (found - t.double()).norm() <= tolerance * t.double().norm().clamp(min=0.1), name
    for step, others in zip(gradients, results[1][0], strict=True):
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(step, others, strict=True))


def test_two_ranks_have_the_gradients_of_one_process(tmp_path):
    results = together(2, tmp_path, wrapped, "plain", "auto", torch.float64)
    assert_same(results, steps(model_of("plain", torch.float64), [0, 1], torch.float64, by_parts), 1e-9)


@pytest.mark.parametrize("kind", ["find_unused_parameters", "static_graph", "gradient_as_bucket_view"])
def test_the_ways_of_distributed_data_parallel(tmp_path, kind):
    results = together(2, tmp_path, wrapped, kind, "auto", torch.float64)
    assert_same(results, steps(model_of(kind, torch.float64), [0, 1], torch.float64, by_parts), 1e-9)


def test_the_native_engine(tmp_path):
    """float32, without ReLUs that a rounding flips. In one vector, as parameters whose gradients are all
    rounding drown there."""
    (gradients, state), other = together(2, tmp_path, wrapped, "plain", "native", torch.float32)
    wanted, last = steps(model_of("plain", torch.float32).double(), [0, 1], torch.float64, by_parts)
    allowed = tolerance(torch.float32, layers=10)
    for step, own in zip(gradients, wanted, strict=True):
        assert error(torch.cat([g.flatten() for g in step]), torch.cat([g.flatten() for g in own])) < allowed
    assert all(error(state[f"module.{name}"], t) < allowed for name, t in last.items())
    assert all(
        torch.equal(g, h) for a, b in zip(gradients, other[0], strict=True) for g, h in zip(a, b, strict=True)
    )


def test_accumulated_gradients(tmp_path):
    """What no_sync adds up is reduced with the last part."""
    results = together(2, tmp_path, wrapped, "no_sync", "auto", torch.float64)
    stock = together(2, tmp_path / "stock", wrapped, "no_sync", "stock", torch.float64)
    (gradients, state), (wanted, last) = results[0], stock[0]
    pairs = [pair for a, b in zip(gradients, wanted, strict=True) for pair in zip(a, b, strict=True)]
    assert all((g - w).norm() < 1e-9 * w.norm().clamp(min=0.1) for g, w in pairs)
    assert all(
        (state[k].double() - t.double()).norm() < 1e-9 * t.double().norm().clamp(min=0.1)
        for k, t in last.items()
    )
