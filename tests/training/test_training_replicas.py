"""Replicas: each is, bit for bit, what it is alone, whatever the others do."""

from __future__ import annotations

import contextlib
import copy
import signal
from types import SimpleNamespace

import pytest
import torch
from runs import TIMES, digits, network

import fastbn
from fastbn.data.feed import Resident
from fastbn.errors import Diverged, MachineError, Stopped, UsageError
from fastbn.planning.plan import SPARE
from fastbn.recipe import Recipe
from fastbn.trainable import freeze
from fastbn.training import planner, replicas
from fastbn.training.cuda_graph import Captured
from fastbn.training.step import TrainingStep

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN, TEST = digits()
# 64 images: 24, 24 and a ragged 16
SEEDS, RATES, SETTINGS = [0, 1], [0.1, 0.3], {"epochs": 2, "batch_size": 24}


def networks(engine="reference"):
    return [freeze(network(seed=seed, engine=engine), "bn") for seed in SEEDS]


def figures(history):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in history]


def alone(models, rates, **settings):
    """Train each by itself, and return its history, or that it diverged, and its state."""
    found = []
    for model, seed, rate in zip(models, SEEDS, rates, strict=True):
        try:
            history = fastbn.fit(
                model, TRAIN, TEST, progress=False, seed=seed, lr=rate, **SETTINGS, **settings
            )
        except Diverged as error:
            history = error
        found.append((history, model.state_dict()))
    return found


def assert_equal(models, histories, expected):
    for model, history, (wanted, state) in zip(models, histories, expected, strict=True):
        if isinstance(wanted, Diverged):
            assert isinstance(history, Diverged) and str(history) == str(wanted)
        else:
            assert figures(history) == figures(wanted)
        for name, value in model.state_dict().items():
            # a network that diverged has NaN statistics
            assert value.numpy().tobytes() == state[name].numpy().tobytes(), name


@pytest.mark.parametrize("engine, optimizer", [("reference", "sgd"), ("native", "adam")])
def test_each_is_what_it_is_alone(engine, optimizer):
    """Ragged batches, and evaluations between."""
    models = networks(engine)
    expected = alone(copy.deepcopy(models), RATES, optimizer=optimizer)
    kept = TRAIN.images.clone()
    histories = fastbn.fit_replicas(
        models, TRAIN, TEST, progress=False, seed=SEEDS, lr=RATES, optimizer=optimizer, **SETTINGS
    )
    assert_equal(models, histories, expected)
    assert len({history[-1]["train_loss"] for history in histories}) == 2 and torch.equal(TRAIN.images, kept)
    assert all(
        p.untyped_storage().nbytes() == p.numel() * 4 and p.grad is None
        for model in models
        for p in model.parameters()
    )


def test_one_that_diverges_takes_no_other_with_it():
    models, rates = networks(), [1e30, 0.1]
    expected = alone(copy.deepcopy(models), rates)
    assert [isinstance(history, Diverged) for history, _ in expected] == [True, False]
    assert_equal(
        models,
        fastbn.fit_replicas(models, TRAIN, TEST, progress=False, seed=SEEDS, lr=rates, **SETTINGS),
        expected,
    )
    assert all(torch.isfinite(p).all() for p in models[0].parameters())


def test_they_may_end_at_different_times():
    models = networks()[:2]
    kinds = zip(models, (1, 3), (24, 10), strict=True)
    expected = [
        fastbn.fit(copy.deepcopy(model), TRAIN, epochs=n, batch_size=b, progress=False)
        for model, n, b in kinds
    ]
    found = fastbn.fit_replicas(models, TRAIN, epochs=[1, 3], batch_size=[24, 10], progress=False)
    assert [figures(history) for history in found] == [figures(history) for history in expected]


def test_captured_steps(monkeypatch):
    """A recorder launches again what it was given, as a CUDA graph does on a GPU."""
    recorded = []

    def record(launches):
        recorded.append(launches)
        return launches

    models = networks()
    expected = alone(copy.deepcopy(models), RATES)
    monkeypatch.setattr(
        TrainingStep,
        "_taking",
        lambda step: Captured(step._compute, torch.device("cpu"), lambda device: record),
    )
    assert_equal(
        models,
        fastbn.fit_replicas(models, TRAIN, TEST, progress=False, seed=SEEDS, lr=RATES, **SETTINGS),
        expected,
    )
    # of each a whole batch, that again after the ragged one's first step, and the ragged one
    assert len(recorded) == 2 * 3


def test_all_of_a_replica_runs_in_its_lane(monkeypatch):
    """Steps, draws and evaluations: on CUDA whatever another stream did would be a race."""
    inside, seen, mine = [], [], {}

    class Lane:
        def __init__(self, k):
            self.k = k

        def __enter__(self):
            assert not inside
            inside.append(self.k)

        def __exit__(self, *error):
            inside.pop()

    @contextlib.contextmanager
    def lanes(device, count):
        yield [Lane(k) for k in range(count)]

    def spied(owner, name, who):
        original = getattr(owner, name)

        def call(self, *arguments, **more):
            seen.append((name, mine.setdefault(id(who(self)), inside[0]) == inside[0]))
            return original(self, *arguments, **more)

        monkeypatch.setattr(owner, name, call)

    monkeypatch.setattr(replicas, "lanes", lanes)
    spied(TrainingStep, "__call__", lambda step: step)
    spied(Resident, "begin", lambda feed: feed)
    spied(Resident, "held_out", lambda feed: feed)
    fastbn.fit_replicas(networks(), TRAIN, TEST, progress=False, seed=SEEDS, **SETTINGS)
    assert all(right for _, right in seen) and {name for name, _ in seen} == {"__call__", "begin", "held_out"}
    assert sorted(set(mine.values())) == [0, 1] and len(seen) == 2 * 2 * (3 + 1 + 1)


@pytest.mark.parametrize("fails", [False, True])
def test_streams_fork_and_join(monkeypatch, fails):
    said = []

    class Stream:
        def __init__(self, device=None, name=None):
            self.name = name or f"side {sum(text.startswith('new') for text in said)}"
            said.append(f"new {self.name}")

        def wait_stream(self, other):
            said.append(f"{self.name} waits for {other.name}")

    here = Stream(name="here")
    said.clear()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: here)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: f"on {stream.name}")
    with contextlib.suppress(ArithmeticError), replicas.lanes(torch.device("cuda"), 2) as lanes:
        assert lanes == ["on side 0", "on side 1"]
        said.append("work")
        if fails:
            raise ArithmeticError
    forked, joined = (
        ["side 0 waits for here", "side 1 waits for here"],
        ["here waits for side 0", "here waits for side 1"],
    )
    assert said == ["new side 0", "new side 1", *forked, "work", *joined]


def test_a_signal_stops_all_between_two_steps(monkeypatch):
    calls, original = [], TrainingStep.__call__

    def counting(self, *arguments):
        calls.append(self)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)
        original(self, *arguments)

    monkeypatch.setattr(TrainingStep, "__call__", counting)
    models = networks()
    with pytest.raises(Stopped) as stopped:
        fastbn.fit_replicas(models, TRAIN, TEST, progress=False, seed=SEEDS, **SETTINGS)
    assert stopped.value.exit_code == 143 and len(calls) == 5  # no step is begun after it
    assert all(p.untyped_storage().nbytes() == p.numel() * 4 for model in models for p in model.parameters())


def test_progress_names_the_replica(capfd):
    fastbn.fit_replicas(networks()[:2], TRAIN, **SETTINGS)
    out, err = capfd.readouterr()
    said = [line.split("  ")[:2] for line in err.splitlines()]
    assert out == "" and said[:2] == [["replica 1/2", "plan"], ["replica 2/2", "plan"]]
    assert said[2:] == [[f"replica {k}/2", f"epoch {epoch}/2"] for epoch in (1, 2) for k in (1, 2)]


@pytest.mark.parametrize(
    "change, error, said",
    [
        ({"lr": [0.1, 0.2, 0.3]}, UsageError, "lr has 3 values for 2 models"),
        ({"batch_size": "auto"}, UsageError, "batch_size auto"),
        ({"precision": ["fp32", "bf16"]}, UsageError, "bf16, fp32"),
        ({"precision": "tf32"}, MachineError, "tf32"),
        ({"train": "digits"}, UsageError, "got str"),
        ({"models": []}, UsageError, "0 models"),
        ({"models": "twice"}, UsageError, "twice"),
    ],
)
def test_what_cannot_be(change, error, said):
    models = change.pop("models", networks())
    models = [network()] * 2 if models == "twice" else models
    with pytest.raises(error, match=said):
        fastbn.fit_replicas(models, change.pop("train", TRAIN), **{"progress": False, **SETTINGS, **change})
    assert all(p.untyped_storage().nbytes() == p.numel() * 4 for model in models for p in model.parameters())


def test_on_a_gpu_each_plans_within_its_part_of_the_memory(monkeypatch):
    """In turns each could have all of it: nothing of one step is left when the next begins."""
    monkeypatch.setattr(planner, "free_memory", lambda device: 12 * 10**9)
    recipe, budgets = Recipe(batch_size=8).resolved(1), {}
    for device, count in (("cpu", 4), ("cuda", 1), ("cuda", 4)):
        source = SimpleNamespace(device=torch.device(device), sample=(3, 8, 8), nbytes=10**9)
        budgets[device, count] = planner.planner_of(network(), source, recipe, count).budget / (1 - SPARE)
    assert budgets["cpu", 4] == budgets["cuda", 1] == pytest.approx(13e9, rel=1e-4)  # and the network itself
    assert budgets["cuda", 4] == pytest.approx(4e9, rel=1e-4)


def test_there_are_none_on_xla():
    step = SimpleNamespace(feed=SimpleNamespace(device=torch.device("xla")))
    with pytest.raises(UsageError, match="XLA"):
        replicas.side_by_side(
            [SimpleNamespace(step=step, recipe=SimpleNamespace(precision="fp32"))], lambda k, error: None
        )
