"""What fuse() is predicted to gain: against recorded steps, and what is said of it."""

from __future__ import annotations

import json
import math
import re
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bench.architectures import rates, table
from bench.records.conditions import RESULTS
from fastbn import FastBNOnlyResNet, explain, freeze, fuse
from fastbn.engine import fused_forward, select
from fastbn.engine.native import build
from fastbn.engine.program.build import read
from fastbn.errors import UsageError
from fastbn.planning import gain
from fastbn.planning.work import step_work

ERROR = 0.25  # docs/networks.md: of the recorded ratios
ROWS = [
    row
    for path in sorted(RESULTS.glob("architectures-*.json"))
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
    if "work" in row and "seconds" in row
]
native = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['library']}-{row['name']}-{row['instructions']}")
def test_recorded_steps_are_predicted(row):
    predicted, recorded = table.predicted_ratio(row), table.ratio_of(row["seconds"])[1]
    assert abs(predicted / recorded - 1) <= ERROR


@native
@pytest.mark.slow
def test_a_network_has_the_work_that_is_on_record():
    """Ours of torchvision's plan: what a prediction is made of is what the rates were fitted to."""
    engine = select._native(False)
    rows = [row for row in ROWS if row["name"] == "resnet18" and row["instructions"] == engine.instructions]
    if not rows:
        pytest.skip(f"no recorded steps of {engine.instructions}")
    model = FastBNOnlyResNet(18, family="imagenet", engine="stock")
    _, program = read(model, {}, engine, {})
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = step_work(program, engine, [torch.empty(8, 3, 224, 224)])
    stock, fused = rows[0]["work"].values()
    assert found[0].keys() == stock.keys()
    moved = {kind: fused[kind] for kind in gain.SHARED}  # the algorithms may be others by now
    for own, recorded in zip(found[:2], (stock, moved), strict=True):
        assert all(math.isclose(own[kind], n, rel_tol=0.02) for kind, n in recorded.items())  # fewer classes
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_rates_are_found_again(monkeypatch):
    monkeypatch.setattr(rates, "DRAWN", 1e-3)
    rates_of = {kind: usual * (1 + 0.1 * i) for i, (kind, usual) in enumerate(rates.USUAL.items())}
    draw = torch.Generator().manual_seed(0)
    amounts = torch.rand(40, len(rates_of), generator=draw, dtype=torch.float64)
    works = [{k: float(a) / rates.USUAL[k] for k, a in zip(rates_of, row, strict=True)} for row in amounts]
    found = rates.fit(works, [sum(n * rates_of[kind] for kind, n in work.items()) for work in works])
    assert all(math.isclose(found[kind], rate, rel_tol=0.02) for kind, rate in rates_of.items())


class Doubled(nn.Module):
    """A module of the user's, which its own forward leaves a mark on."""

    calls = 0

    def forward(self, x):
        Doubled.calls += 1
        return 2 * x


def network(frozen: bool, *more: nn.Module) -> nn.Module:
    """Two convolutions with their BatchNorms; most of the work is the second's, which trains or is frozen."""
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 64, 3, padding=1)
    body = nn.Sequential(
        first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.BatchNorm2d(64), nn.ReLU(), *more, nn.Flatten(),
        nn.Linear(64 * 64, 2),
    )  # fmt: skip
    freeze(body, "bn")
    second.weight.requires_grad_(not frozen)
    return body


@pytest.fixture
def known(monkeypatch):
    """Rates, on every machine: what counts is bytes, and steps of any size are looked at."""
    monkeypatch.setattr(gain, "step_rates", lambda instructions: {"bytes": 1.0})
    monkeypatch.setattr(gain, "FEWEST", 0)
    monkeypatch.setattr(gain, "_light", lambda model, x: False)


def said(model: nn.Module, calls: int = 2) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            model(torch.randn(4, 3, 8, 8)).sum().backward()
    return [str(w.message) for w in caught]


@native
def test_little_to_gain_is_said_once(known):
    model = fuse(network(frozen=False), "native")
    with torch.no_grad():
        model(torch.randn(4, 3, 8, 8))  # no training step
    (message,) = said(model)
    most = float(re.search(r"at most ([\d.]+) times", message)[1])
    assert 1 < most < gain.LEAST
    assert "Sequential" in message and "(4, 3, 8, 8)" in message and "explain" in message
    assert said(fuse(network(frozen=True), "native")) == []


@native
def test_a_module_of_the_users_is_not_run_to_look(known):
    seen = Doubled()
    model = fuse(network(False, seen), "native")
    Doubled.calls = 0
    assert said(model, 1) == []
    assert Doubled.calls == 1  # what the comparison counted is put back


class Masked(nn.Module):
    """A step of it has a shape that depends on its input's values."""

    def forward(self, x):
        return x * x[x > 0].mean()


def scripted() -> nn.Module:
    return torch.jit.script(nn.BatchNorm2d(64))


def behind(part: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64), part)


STEPS = {
    "a mask as an index": Masked,
    "in place on a region's output": lambda: behind(nn.ELU(inplace=True)),
    "dropout in place": lambda: behind(nn.Dropout(0.5, inplace=True)),
    "scripted": scripted,
}


@native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("part", STEPS.values(), ids=STEPS)
def test_a_look_at_the_gain_ends_no_step(part, known):
    """And leaves no mark: a buffer is the tensor that it was."""
    model = fuse(network(False, part()), "native")
    held = {name: id(t) for name, t in model.named_buffers() if "6." not in name}
    assert not any("raises" in message for message in said(model))
    assert all(id(dict(model.named_buffers())[name]) == own for name, own in held.items())


@native
def test_a_look_at_the_gain_is_not_a_checkpoints(known):
    model, x = fuse(network(False, nn.MaxPool2d(1)), "native"), torch.randn(4, 3, 8, 8)
    checkpoint(model, x, use_reentrant=False).sum().backward()
    assert fused_forward(model).advised


@native
def test_a_step_in_half_precision_is_not_judged(known):
    model = fuse(network(False), "native")
    with torch.autocast("cpu", torch.bfloat16):
        assert said(model) == []


@native
def test_explain_says_the_gain_where_the_images_are_known(known):
    model = fuse(network(frozen=True), "native")
    x = torch.randn(4, 3, 8, 8)
    first = str(explain(model, x)).splitlines()[0]
    assert "2 of 2 convolutions run fused (100% of the multiplications); predicted " in first
    assert first == str(explain(model, (3, 8, 8), batch=4)).splitlines()[0] and "× stock BN-only" in first
    assert "predicted" not in str(explain(model)) and explain(model).gain is None
    assert explain(fuse(network(True), "reference"), x).gain is None
    with pytest.raises(UsageError, match=r"\(N, C, H, W\), got \(3, 8, 8\)"):
        explain(model, x[0])
