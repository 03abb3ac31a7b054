"""bench.gpu's stages at toy sizes in the interpreter: their records are whole, and what is wrong is
reported and never timed."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import interpreted  # first: it decides whether these tests can run
import pytest
import torch

from bench.gpu import __main__ as gpu
from bench.gpu import networks, step, trial
from bench.gpu.bars import bars
from bench.gpu.correctness import judge, selected
from bench.gpu.measure import Sink
from bench.records.rows import Row, load
from bench.suite import kernels as rows
from bench.suite.cases import Blocks
from fastbn.engine.triton.engine import Triton
from fastbn.engine.triton.tuning import ROLLING, TAPS

if interpreted.DEVICE != "cpu":
    pytest.skip("on a GPU the stages are run whole", allow_module_level=True)

ROOT = Path(__file__).parents[2]
ENVELOPE = {"format", "conditions", "machine", "stage", "finished", "left_out", "rows"}


@pytest.fixture(autouse=True)
def as_before(one_thread):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    step.wrong.cache_clear()
    yield
    step.wrong.cache_clear()
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def wrong_gradient(monkeypatch):
    """Off by one part in a hundred."""
    right = Triton.gradient

    def gradient(self, *arguments):
        ds, coefficients = right(self, *arguments)
        return ds.mul_(1.01), coefficients

    monkeypatch.setattr(Triton, "gradient", gradient)


def stage(out, *arguments) -> int:
    return gpu.main([*arguments, "--small", "--out", str(out)])


def read(path) -> dict:
    """Return a record: strict JSON, every number finite, no folder of this machine's."""

    def refuse(constant: str):
        raise AssertionError(f"{path} holds {constant}")

    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text and str(path.parent) not in text and '"nan"' not in text
    found = json.loads(text, parse_constant=refuse)
    assert {"device", "versions", "commit", "date"} <= found["conditions"].keys()
    return found


def test_correctness_of_a_few_kernels(tmp_path):
    assert stage(tmp_path, "correctness", "--match", "float16: one pixel") == 0
    found = read(tmp_path / "correctness.json")
    assert set(found) >= ENVELOPE and found["finished"] and found["failures"] == [] and found["checked"] == 8
    for row in found["rows"]:
        assert 0 <= row["error"] < row["tolerance"] and row["worst"]


def test_a_wrong_gradient_is_a_failure(tmp_path, wrong_gradient):
    assert stage(tmp_path, "correctness", "--match", "saved, float16: one pixel") == 1
    found = read(tmp_path / "correctness.json")
    assert {failed["what"] for failed in found["failures"]} >= {"ds"}
    assert all(failed["error"] > failed["tolerance"] for failed in found["failures"])


def test_a_resumed_correctness_goes_on(tmp_path):
    """What was running when a process died is a failure of its own, and is not tried again."""
    dead = {
        "rows": [],
        "running": "forward formed, float32: one pixel, 3×16→32×1×1, tap by tap",
        "finished": False,
        "unchecked": 0,
    }
    (tmp_path / "correctness-0.json").write_text(json.dumps(dead))
    assert stage(tmp_path, "correctness", "--match", "forward formed, float32: one pixel", "--resume") == 1
    (failed,) = read(tmp_path / "correctness.json")["failures"]
    assert failed["name"] == dead["running"] and "process" in failed["what"]


def test_checks_have_names_of_their_own():
    """A resumption goes by them."""
    names = [name for name, _ in selected(False, "", 0, 1)]
    assert len(set(names)) == len(names) > 600
    assert sorted(name for index in range(5) for name, _ in selected(False, "", index, 5)) == sorted(names)


def test_judge():
    def halfway():
        yield "first", 1.0, 2.0
        yield "second", 3.0, 2.0
        raise ValueError("broken")

    assert [failed["what"] for failed in judge("", halfway)["failures"]] == ["second", "ValueError: broken"]
    assert judge("", lambda: [("x", math.nan, 1.0)])["failures"]
    assert judge("", lambda: [])["failures"]  # nothing was checked
    assert judge("", lambda: [("x", 0.0, 1.0), ("y", 0.5, 1.0)])["worst"] == "y"


def test_a_record_is_json_whatever_is_measured(tmp_path):
    sink = Sink(tmp_path, "x")
    sink.add(value=math.nan, values=[math.inf])
    assert json.loads((tmp_path / "x.json").read_text())["rows"] == [{"value": "nan", "values": ["inf"]}]


def row(who, way, trains, ms, precision="amp-fp16"):
    own = {"seconds": ms / 1e3, "peak_memory_bytes": int(ms * 1e6)} if ms else {}
    more = {"way": way} | ({} if ms else {"skipped": "no time"})
    return Row(level="step", case="", provider=who, trains=trains, precision=precision, more=more, **own)


def test_bars():
    rows = [
        row("fastbn triton", "fit", "bn", 8.0),
        row("stock-full", "eager", "all", 50.0),
        row("stock-full", "graph", "all", 15.0),
    ]
    rows.append(row("stock-full", "graph", "all", None, "amp-bf16"))
    found = {bar["bar"]: bar for bar in bars("866x128", rows)}
    assert [bar["met"] for bar in found.values()] == [True, True, False, None, True]
    assert found["best graphed or compiled, everything trained, over fit"]["measured"] == pytest.approx(
        15 / 8
    )
    (image, *_) = bars("866x1024", [row("fastbn triton", "fit", "bn", 60.0)])
    assert image["measured"] == pytest.approx(58.59, abs=0.01) and image["met"] is False


def test_what_is_missing_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_module"))
    assert stage(tmp_path, "trial") == 2
    assert "not installed here: no_such_module" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_merge(tmp_path, capsys):
    """A stage that failed and one that did not end are told apart."""
    Sink(tmp_path, "correctness").finish(checked=1, failures=[{"name": "a kernel", "what": "ds"}])
    Sink(tmp_path, "trial").leave_out("something")
    assert stage(tmp_path, "merge", "--results", str(tmp_path / "results")) == 1
    (path,) = (tmp_path / "results").iterdir()
    found = read(path)
    assert path.stem.endswith(found["conditions"]["date"]) and set(found["stages"]) == {
        "correctness",
        "trial",
    }
    said = capsys.readouterr().out
    assert "NOT FINISHED" in said and "FAILED correctness" in said


@pytest.mark.slow
def test_trial(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trial, "SMALL", (((16, 4),), (2,), ("fp16",)))
    assert stage(tmp_path, "trial") == 0
    found = read(tmp_path / "trial.json")
    assert set(found) >= ENVELOPE and found["failures"] == [] and len(found["rows"]) == 16
    for each in found["rows"]:
        assert each["seconds"] > 0 and each["moved_bytes"] > 0 and each["roofline_share"] > 0
    assert stage(tmp_path, "merge", "--results", str(tmp_path / "results")) == 0
    assert capsys.readouterr().out.count(" of copy") == 8  # those of cold caches
    (record,) = load((tmp_path / "results").iterdir())
    assert [each.told() for each in record.rows] == found["rows"]


@pytest.mark.slow
def test_a_wrong_gradient_is_not_timed_in_the_trial(tmp_path, monkeypatch, wrong_gradient):
    monkeypatch.setattr(trial, "SMALL", (((16, 4),), (2,), ("fp16",)))
    assert stage(tmp_path, "trial") == 1
    found = read(tmp_path / "trial.json")["failures"]
    assert {each["provider"] for each in found} == {f"fastbn triton, {by}" for by in (ROLLING, TAPS)}
    assert all(each["case"].startswith("∇conv2") and "seconds" not in each for each in found)


@pytest.mark.slow
def test_step(tmp_path):
    assert stage(tmp_path, "step") == 0
    found = read(tmp_path / "step-8x4.json")
    assert set(found) >= ENVELOPE and found["failures"] == [] and found["left_out"]
    assert {each["provider"].split("-")[0].split()[0] for each in found["rows"]} == {"fastbn", "stock"}
    for each in found["rows"]:
        assert each["q1"] <= each["seconds"] <= each["q3"] and each["first_seconds"] > 0
    # as a process that ended leaves it
    late = [found["rows"][0], {**found["rows"][1], "more": {"skipped": "not timed yet"}}]
    (tmp_path / "step-8x4.json").write_text(json.dumps(found | {"rows": late}), encoding="utf-8")
    assert stage(tmp_path, "step", "--resume") == 0
    again = read(tmp_path / "step-8x4.json")["rows"]
    assert again[0] == late[0] and [each["provider"] for each in again] == [
        each["provider"] for each in found["rows"]
    ]
    assert all("skipped" not in each["more"] for each in again)


@pytest.mark.slow
def test_a_step_of_replicas(tmp_path, capsys):
    assert stage(tmp_path, "step", "--config", "110x128-replicas") == 0
    found = read(tmp_path / "step-8x4-replicas.json")
    assert (
        set(found) >= ENVELOPE
        and found["failures"] == []
        and [each["more"]["replicas"] for each in found["rows"]] == [1, 2]
    )
    for each in found["rows"]:
        assert each["more"]["seconds_per_replica"] == each["seconds"] / each["more"]["replicas"]
    assert stage(tmp_path, "merge", "--results", str(tmp_path / "results")) == 0
    assert capsys.readouterr().out.count("ms per replica") == 2
    (record,) = load((tmp_path / "results").iterdir())  # a benchmark's record, as bench.report reads it
    assert [each.told() for each in record.rows] == found["rows"]


@pytest.mark.slow
def test_a_wrong_gradient_is_not_timed_in_the_step(tmp_path, wrong_gradient):
    assert stage(tmp_path, "step") == 1
    found = read(tmp_path / "step-8x4.json")
    assert all(each["provider"].startswith("stock") for each in found["rows"] if "seconds" in each)
    assert all("off by" in failed["failed"] for failed in found["failures"]) and len(found["failures"]) == 2


@pytest.mark.slow
def test_networks(tmp_path):
    assert stage(tmp_path, "correctness", "--match", "network", "--seconds", "10000") == 0
    assert read(tmp_path / "correctness.json")["checked"] == 14


@pytest.mark.slow
def test_other_bits_of_kernels_that_begin_early_are_failures(tmp_path, monkeypatch):
    class Racing(Triton):
        def gradient(self, *arguments):
            ds, coefficients = super().gradient(*arguments)
            return ds.mul_(1.01), coefficients

    monkeypatch.setattr(networks, "engine", lambda early: Racing() if early else Triton())
    assert stage(tmp_path, "correctness", "--match", "begin early, torch.float32") == 1
    found = read(tmp_path / "correctness.json")
    assert found["checked"] == 1 and "elements that differ, gradient, call 0" in {
        failed["what"] for failed in found["failures"]
    }


@pytest.mark.slow
def test_processes_share_the_checks(tmp_path):
    assert stage(tmp_path, "correctness", "--match", "float32: one pixel", "--jobs", "2") == 0
    found = read(tmp_path / "correctness.json")
    assert found["checked"] == 8 and len({each["name"] for each in found["rows"]}) == 8
    assert len(list(tmp_path.glob("correctness-*.json"))) == 2


@pytest.mark.slow
def test_train_is_resumed(tmp_path):
    for epochs in (1, 2):
        assert stage(tmp_path, "train", "--depth", "8", "--epochs", str(epochs)) == 0
        found = read(tmp_path / "train-resnet8.json")
        assert (
            found["epochs_done"] == epochs
            and len(found["rows"]) == epochs
            and found["summary"]["test_accuracy"] >= 0
        )


def test_the_script_is_bash():
    subprocess.run(["bash", "-n", str(ROOT / "bench" / "gpu_check.sh")], check=True, timeout=60)


@pytest.mark.parametrize("operation", rows.OPERATIONS)
def test_the_kernel_level_measures_this_engine_too(operation):
    """What pytest-benchmark plays back on a GPU: the engine's own operation, held to float64's."""
    blocks = Blocks(16, 5, 3)
    given = rows.inputs(blocks, torch.device("cpu"))
    found = rows.fused(operation, Triton(), given)()
    assert rows.error(found, rows.stock(operation, given.double())(), given) < rows.allowed(blocks)
