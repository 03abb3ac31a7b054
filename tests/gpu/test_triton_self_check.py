"""The Triton engine's self-check, with stand-ins for a GPU: kernels that are wrong, that do not compile, that
fail when launched."""

from __future__ import annotations

import json
import subprocess
import sys

import interpreted
import pytest
import torch
from nets import resnet

from bench.oracle.networks import images
from fastbn import fuse
from fastbn.cli import command
from fastbn.engine import select
from fastbn.engine.triton import probes, self_check
from fastbn.engine.triton.engine import Triton
from fastbn.engine.triton.kept import kept
from fastbn.errors import MachineError, UsageError
from fastbn.planning import precision

if interpreted.DEVICE != "cpu":
    pytest.skip("stand-ins for a GPU, where there is none", allow_module_level=True)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SMALL = probes.Kind(8, 8, 1)
KEY = {"device": "a stand-in", "kernels": "0"}


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """A cache folder of the test's own, and no verdict from before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(probes, "KINDS", (SMALL,))
    monkeypatch.setattr(probes, "BATCH", 2)
    self_check.verdict.cache_clear()
    yield
    self_check.verdict.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA device as the check sees one; returns the results to be."""
    results = {}
    monkeypatch.setattr(self_check, "key", lambda device: KEY)
    monkeypatch.setattr(
        self_check, "run_apart", lambda storage, device: {f"a kind in {storage}": "", **results}
    )
    monkeypatch.setattr(select, "capability", lambda device: 90)
    return results


def small(kind, storage):
    return probes.wrong(kind, storage, CPU, batch=2, height=3)


@pytest.mark.parametrize("storage", ["float32", "float16", "mixed"])
def test_right_kernels_pass(storage):
    assert small(SMALL, storage) == ""


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_wrong_kernels_are_found(monkeypatch, pass_):
    name = "convolve" if pass_ == "forward" else "gradient"
    right = getattr(Triton, name)

    def wrong(self, *arguments):
        found = right(self, *arguments)
        found[0].mul_(1.001)  # fifty times float32's tolerance
        return found

    monkeypatch.setattr(Triton, name, wrong)
    assert "is off by" in small(SMALL, "float32")


@pytest.mark.parametrize(
    "error", [RuntimeError("Triton Error [CUDA]: an illegal memory access"), ValueError("x")]
)
def test_a_kernel_that_raises_is_a_failure_of_its_kind(monkeypatch, capsys, error):
    def raises(*_):
        raise error

    monkeypatch.setattr(Triton, "convolve", raises)
    (result,) = self_check.examine("float32", 0, 1, CPU).values()
    assert type(error).__name__ in result and str(SMALL) in result
    name, told = json.loads(capsys.readouterr().out)
    assert told == result and name == f"{SMALL} in float32"


def test_it_is_made_once_for_a_key(capsys):
    calls = []

    def run(storage, device):
        calls.append(storage)
        return {f"a kind in {storage}": ""}

    for _ in range(2):
        assert self_check.checked(KEY, "float16", run=run) == {"a kind in float16": ""}
    assert calls == ["float16"] and capsys.readouterr().err.count("\n") == 1
    self_check.checked({**KEY, "kernels": "1"}, "float16", run=run)
    self_check.checked(KEY, "bfloat16", run=run)
    assert calls == ["float16", "float16", "bfloat16"]


@pytest.mark.parametrize("content", ["", "[" * 100_000, '{"key": 1}', '{"results": {"a": 1}}', "\0" * 100])
def test_a_damaged_verdict_is_made_anew(content):
    path = self_check.place(KEY, "float16")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert kept(path, KEY) is None
    assert self_check.checked(KEY, "float16", run=lambda *_: {"a": "wrong"}) == {"a": "wrong"}
    assert kept(path, KEY) == {"a": "wrong"}


def test_auto_runs_stock_where_it_fails_and_says_why(gpu):
    gpu["another kind"] = "another kind: the gradient is off by 1, allowed 1e-5"
    engine, why = select.choose("auto", GPU, torch.float16)
    assert engine is None and "another kind" in why and "fastbn.doctor" in why
    with pytest.raises(MachineError, match=r"another kind.*fastbn\.doctor"):
        select.choose("triton", GPU, torch.float16)
    assert precision.automatic("auto", GPU) == "bf16" and precision.automatic("stock", GPU) == "fp32"


def test_auto_takes_the_engine_where_it_passes(gpu):
    engine, why = select.choose("auto", GPU, torch.float16)
    assert isinstance(engine, Triton) and why == "float16 on CUDA"
    assert precision.automatic("auto", GPU) == "mixed"


def test_the_switch_leaves_it_out(gpu, monkeypatch):
    gpu["another kind"] = "wrong"
    monkeypatch.setenv(self_check.SWITCH, "0")
    assert self_check.verdict(GPU, torch.float16) == ""


def test_a_process_that_dies_or_hangs_is_a_failure(monkeypatch):
    """Each kind of a share that told nothing gets the reason."""
    real = subprocess.Popen
    for script, word, limit in (
        ("import os; os.abort()", "ended with -6", 120),
        ("import time; time.sleep(600)", "no end after", 1),
    ):
        monkeypatch.setattr(self_check, "LIMIT", limit)
        monkeypatch.setattr(
            subprocess, "Popen", lambda words, script=script, **kw: real([sys.executable, "-c", script], **kw)
        )
        (result,) = self_check.run_apart("float16", 0).values()
        assert word in result and str(SMALL) in result


def test_a_kernel_that_fails_in_mid_run_is_named(monkeypatch):
    """Never a bare traceback; memory that ran out is the planner's."""
    from fastbn.kernels.triton import conv, conv_rolling

    model = fuse(resnet(8, 4).float(), "triton")
    x = images(2, 5, 5, dtype=torch.float32)

    def launch(*_):
        raise RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 232448")

    for module in (conv, conv_rolling):
        monkeypatch.setattr(module, "launch", launch)
    with pytest.raises(
        MachineError, match=r"convolve of conv1 \(3×3, 3 to 4 channels\) on \(2, 3, 5, 5\) float32"
    ):
        model(x)
    with pytest.raises(MachineError, match="--engine stock"):
        model(x)

    def memory(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    for module in (conv, conv_rolling):
        monkeypatch.setattr(module, "launch", memory)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        model(x)


def test_usage_errors_stay_what_they_are():
    from fastbn.engine.triton.failures import explained

    @explained
    def refuses(self):
        raise UsageError("asked, found, do")

    with pytest.raises(UsageError, match="asked, found, do"):
        refuses(None)


def test_a_model_runs_stock_where_it_fails_and_warns_once(monkeypatch):
    """`auto` on a stand-in whose self-check failed: stock's results, the reason said once."""
    model = fuse(resnet(8, 4).float())
    x = images(2, 5, 5, dtype=torch.float32)
    expected = fuse(resnet(8, 4).float(), "stock")(x)
    monkeypatch.setattr(select, "failed_check", lambda *_: "the Triton engine failed its self-check: x")
    with pytest.warns(UserWarning, match="runs FastBNOnlyResNet stock.*failed its self-check") as caught:
        assert torch.equal(model(x), expected)
        model(x)
    assert len(caught) == 1


def test_a_gpu_that_fails_in_mid_run_ends_a_command_in_a_line(capsys):
    def act():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")

    assert command.run(act) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--engine stock" in said and "fastbn.doctor" in said
