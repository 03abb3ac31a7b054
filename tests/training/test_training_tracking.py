"""--track: a module with init, log and finish is told of every epoch; anything else is refused in one
line."""

import sys
import types

import pytest
from runs import metrics, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tracker(monkeypatch):
    """A module that writes down how it is called."""
    module = types.ModuleType("tracking_module")
    module.calls = []
    module.init = lambda **given: module.calls.append(("init", given))
    module.log = lambda told, step: module.calls.append(("log", step, told))
    module.finish = lambda: module.calls.append(("finish",))
    monkeypatch.setitem(sys.modules, "tracking_module", module)
    return module


def test_every_epoch_is_told(tracker, tmp_path):
    assert train(tmp_path / "run", "--track", "tracking_module") == 0
    (kind, started), *told, last = tracker.calls
    assert kind == "init" and last == ("finish",)
    assert (started["project"], started["name"], started["config"]["depth"]) == ("fastbn", "run", 8)
    lines = metrics(tmp_path / "run")
    assert [(step, numbers["test_accuracy"]) for _, step, numbers in told] == [
        (line["epoch"], line["test_accuracy"]) for line in lines
    ]
    assert all(isinstance(value, (int, float)) for _, _, numbers in told for value in numbers.values())
    assert {"train_loss", "lr", "seconds"} <= told[0][2].keys()


def test_off_by_default(tracker, tmp_path):
    assert train(tmp_path / "run", epochs=1) == 0
    assert tracker.calls == []


def test_finished_where_training_is_not(tracker, tmp_path):
    assert train(tmp_path / "run", "--track", "tracking_module", "--lr", "1e38") == 3  # diverged
    assert [call[0] for call in tracker.calls] == ["init", "finish"]


@pytest.mark.parametrize(
    "name, said", [("no_such_tracker", "can't be imported"), ("json", "init, log, finish")]
)
def test_no_tracker(name, said, tmp_path, capfd):
    assert train(tmp_path / "run", "--track", name) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"fastbn: error: --track {name}") and said in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
