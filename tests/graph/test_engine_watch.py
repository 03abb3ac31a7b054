"""What a trace would change the meaning of is seen: that part runs as it was written, or the call runs
stock and says why."""

import random
import threading
import warnings

import pytest
import torch
from watched import SEEN, EnableGrad, Generator, Part, Penalty, Whole, both, net

from bench.oracle.networks import images
from bench.oracle.stock import fused
from fastbn.engine import fuse
from fastbn.planning.explain import explain

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("kind", SEEN)
def test_a_part_runs_as_it_was_written(kind):
    """The rest is fused, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, _ = both(net(Whole(kind())), images(3, grad=True))
    graph = explain(ours).graph
    assert [conv.name for region in graph.regions for conv in region.convs] == ["first.conv", "last.conv"]
    (why,) = [why for what, why in graph.stock if what == "part"]
    assert SEEN[kind] in why and why.startswith("watched.py:")


@pytest.mark.parametrize("kind", [kind for kind in SEEN if kind not in (Generator,)])
def test_a_model_that_can_t_be_traced_runs_stock_and_says_why_once(kind):
    model = net(kind())
    with pytest.warns(UserWarning, match="stock in this call") as caught:
        ours, theirs = both(model, images(3, channels=4, grad=True))
    said = [str(w.message) for w in caught if "fastbn" in str(w.message)]
    assert len(said) == 1 and SEEN[kind] in said[0] and "watched.py:" in said[0]
    if kind is Penalty:
        for each in (ours, theirs):
            each.zero_grad()
            (each(images(3, channels=4)).mean() + each.penalty).backward()
        assert torch.equal(ours.bn.weight.grad, theirs.bn.weight.grad)


def test_a_mode_that_is_the_one_around_the_call_changes_nothing():
    ours, theirs = both(net(Whole(EnableGrad())), images(3))
    assert not [why for _, why in explain(ours).graph.stock if why]
    with torch.no_grad():
        assert ours(images(3)).requires_grad == theirs(images(3)).requires_grad


def marks(model):
    """Return all that a model holds: tensors with their versions, attributes, submodules."""
    found = []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            held = value.items() if isinstance(value, dict) else [(key, value)]
            found += [
                (name, key, k, id(v), getattr(v, "_version", None), repr(v))
                for k, v in held
                if k != "forward"
            ]
    return found


@pytest.mark.parametrize("kind", [*SEEN, Part])
def test_tracing_leaves_no_mark(kind):
    model = net(Whole(kind()))
    before, drawn, python = marks(model), torch.get_rng_state(), random.getstate()
    explain(fuse(model, "reference"))
    explain(fuse(model, "stock"))
    assert marks(model) == before
    assert (
        torch.equal(torch.get_rng_state(), drawn) and random.getstate() == python and torch.is_grad_enabled()
    )


KEPT = threading.local()  # which nobody can look into


def test_a_tensor_that_somebody_else_keeps():
    class Keeps(Part):
        def forward(self, x):
            KEPT.tensors.append(self.body(x))
            return KEPT.tensors[-1]

    KEPT.tensors = []
    ours = fused(net(Whole(Keeps())))
    with pytest.warns(UserWarning, match="keeps a tensor beyond the call"):
        ours(images(3))
    assert len(KEPT.tensors) == 1 and isinstance(KEPT.tensors[0], torch.Tensor)
