"""The benchmarks themselves: what they record, in which order they time, and that the gate turns red."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from suite_cases import CPU, RATES, TINY

from bench import first_call, guard, memory
from bench.records.rows import LEVELS, Record, Row, load, new
from bench.report import readme
from bench.report.compare import cases
from bench.report.growth import fitted
from bench.suite import clock, gate, kernels, measure, process, runs
from bench.suite.cases import Blocks
from bench.suite.providers import few, providers
from bench.suite.session import play
from bench.suite.summary import lines
from fastbn.engine.native import build

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*Benchmark")]


@pytest.mark.slow
def test_the_tiny_grid_is_recorded(tmp_path):
    arguments = [
        "bench/",
        "--benchmark-only",
        "--grid",
        "tiny",
        "--record",
        "--results",
        tmp_path,
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    arguments += ["--device", "cpu", f"--benchmark-json={tmp_path}/pytest.json"]
    # xdist's would turn it off
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]
    (path,) = tmp_path.glob("bench-*.json")
    (record,) = load([path])
    assert str(path) in done.stdout.replace("\n", "")
    assert {row.level for row in record.rows} == {"kernel", "step", "scaling", "run"}
    assert record.machine["copy_bytes_per_second"] > 0 and record.machine["matmul_flops_per_second"] > 0
    steps = {row.provider: row for row in record.rows if row.level == "step"}
    assert {name for name in steps if name.startswith("stock")} == {
        "stock-full", "stock-full channels-last", "stock-bn", "stock-bn channels-last",
    }  # fmt: skip
    for row in steps.values():  # no row for what a CPU can't do, and nothing invented in those that are there
        assert row.precision == "fp32" and row.energy_joules is None and row.peak_memory_bytes is None
        assert row.q1 <= row.seconds <= row.q3 and row.n == 3 and 0 < row.gradient_error < 1e-4
        assert row.moved_bytes and row.flops and row.launches and row.saved_bytes and row.roofline_share
    epochs = [row for row in record.rows if row.level == "run"]
    assert {row.provider.split()[0] for row in epochs} == {"stock-full", "stock-bn", "fastbn"}
    assert all(row.seconds and row.epochs == 1 and 0 <= row.accuracy <= 1 for row in epochs)
    kernel = [row.case for row in record.rows if row.level == "kernel"]
    assert len(kernel) == 2 * 2 * len(kernels.OPERATIONS) and all(
        "caches cold" in case or "caches warm" in case for case in kernel
    )
    assert "left out: automatic mixed precision, CUDA graphs" in done.stdout
    assert "scaling: stock-full channels-last: seconds ∝ batch^" in done.stdout
    told = json.loads((tmp_path / "pytest.json").read_text())["benchmarks"]
    played = {own["extra_info"]["provider"]: own for own in told
              if own["extra_info"]["level"] == "step"}  # fmt: skip
    for name, row in steps.items():  # pytest-benchmark tells what the interleaved rounds were
        assert played[name]["stats"]["rounds"] == row.n
        assert played[name]["stats"]["median"] == pytest.approx(row.seconds, rel=1e-6)


def test_plain_pytest_does_not_collect_the_benchmarks(pytestconfig):
    assert pytestconfig.getini("testpaths") == ["tests"]
    assert not any("benchmark" in option for option in pytestconfig.getini("addopts"))


def test_rounds_are_interleaved_and_everyone_has_every_place():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    before = {name: (lambda name=name: order.append(f"-{name}")) for name in "abc"}
    samples = clock.interleaved(calls, 4, CPU)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc" and {len(own) for own in samples.values()} == {4}
    order.clear()
    clock.interleaved(calls, 1, CPU, before=before)
    assert order == ["-a", "a", "-b", "b", "-c", "c"]


def test_a_slow_case_ends_early_with_whole_rounds():
    samples = clock.interleaved({name: lambda: time.sleep(0.01) for name in "ab"}, 100, CPU, most_seconds=0.0)
    assert [len(own) for own in samples.values()] == [clock.LEAST_ROUNDS] * 2 and min(samples["a"]) >= 0.01


def test_the_gate_lets_everyone_through_and_leaves_no_trace():
    wanted = gate.expected(TINY, CPU)
    for provider in providers(TINY, CPU):
        ready = provider.make(TINY, CPU)
        ready.step()
        ready.reset()
        before = [t.clone() for t in ready.model.state_dict().values()]
        assert gate.error(ready, wanted) <= gate.allowed(TINY, provider)
        assert all(map(torch.equal, before, ready.model.state_dict().values()))
        assert not any(state["momentum_buffer"].any() for state in ready.optimizer.state.values())


def test_a_wrong_gradient_is_a_failed_row_and_is_never_timed(engine, monkeypatch):
    monkeypatch.setitem(kernels.FLUSH, "cpu", 1 << 20)
    right = type(engine).gradient

    def wrong(self, paths, added, mask, shape):
        ds, coefficients = right(self, paths, added, mask, shape)
        return ds * 1.001, coefficients

    monkeypatch.setattr(type(engine), "gradient", wrong)
    found = measure.steps("step", TINY, providers(TINY, CPU), CPU, 3)
    (ours,) = [own for name, own in found.items() if name.startswith("fastbn")]
    assert "gradients of γ and β are off by" in ours.failed and ours.seconds is None and not ours.samples
    assert all(own.seconds and not own.failed for name, own in found.items() if name.startswith("stock"))
    with pytest.raises(guard.Slow, match="off by"):
        guard.check(TINY, 0.0, CPU, (3,))
    found = kernels.measure(Blocks(8, 8, 2), "∇conv2", CPU, RATES, 3)
    assert not found["cold", f"fastbn {engine.name}"].samples


def test_a_provider_that_fails_is_a_row(monkeypatch):
    """A provider fails that meets torch.compile's recompile limit, or runs out of memory."""
    chosen = few(providers(TINY, CPU), "eager")
    right = type(chosen[0]).make

    def make(self, case, device):
        if self.name == "stock-bn channels-last":
            raise RuntimeError("recompile limit\nand a page of advice")
        return right(self, case, device)

    monkeypatch.setattr(type(chosen[0]), "make", make)
    found = measure.steps("step", TINY, chosen, CPU, 3)
    assert found["stock-bn channels-last"].failed == "RuntimeError: recompile limit"
    record = Record(conditions={}, machine=RATES, rows=[*found.values()])
    assert cases([record], "step")[0].best("stock").provider == "stock-full channels-last"


def test_a_hopeless_provider_takes_one_step_and_is_no_failure(monkeypatch):
    """bf16 is such a provider where the CPU has no bfloat16 arithmetic."""
    chosen, taken = (
        few(providers(TINY, CPU), "eager"),
        dict.fromkeys(("stock-full channels-last", "stock-bn channels-last"), 0),
    )
    right, right_seconds, slow = type(chosen[0]).make, clock.seconds, set()

    def make(self, case, device):
        ready = right(self, case, device)
        if self.name in taken:
            step = ready.step

            def counted():
                taken[self.name] += 1
                step()

            ready.step = counted
            if self.trains == "all":
                slow.add(counted)
        return ready

    monkeypatch.setattr(type(chosen[0]), "make", make)
    monkeypatch.setattr(
        clock, "seconds", lambda call, device: max(right_seconds(call, device), 1e4 * (call in slow))
    )
    found = measure.steps("step", TINY, chosen, CPU, 3, 60.0)
    row = found["stock-full channels-last"]
    assert (
        row.hopeless
        and "one step took 10000.0 s" in row.failed
        and row.seconds is None
        and not row.gradient_error
    )
    assert taken["stock-full channels-last"] == 1 < taken["stock-bn channels-last"]
    assert all(own.seconds for own in found.values() if own is not row)
    record = Record(conditions={"device": "d", "date": "2026"}, machine=RATES, rows=[*found.values()])
    assert "| 10,000 s, one step, not timed |" in readme.steps([record])
    assert any(line.split() == f"stock-full channels-last {row.failed}".split() for line in lines(record))
    with pytest.raises(pytest.skip.Exception, match="hopeless"):
        play(None, found["stock-full channels-last"])
    # no limit, no haste
    assert not measure.steps("step", TINY, chosen, CPU, 3)["stock-full channels-last"].failed


def test_what_does_not_fit_side_by_side_is_timed_alone_and_says_so(monkeypatch):
    monkeypatch.setattr(measure, "free_memory", lambda device: 0)
    found = measure.steps("step", TINY, few(providers(TINY, CPU), "eager"), CPU, 3)
    assert all(own.alone and own.seconds for own in found.values())


def test_the_time_to_the_accuracy_at_which_fastbn_ends():
    def epochs(provider, *accuracies):
        rows = [Row(level="run", case="c", provider=provider, trains="all", seconds=2.0 * (i + 1),
        accuracy=a, epochs=i + 1)
                for i, a in enumerate(accuracies)]  # fmt: skip
        return rows

    found = {
        "stock-full": epochs("stock-full", 0.3, 0.6, 0.9),
        "fastbn native": epochs("fastbn native", 0.2, 0.3, 0.5),
    }
    assert (
        runs.reaching(found, "stock-full").epochs == 2 and runs.reaching(found, "fastbn native").epochs == 3
    )
    found["stock-full"] = epochs("stock-full", 0.3, 0.4)
    assert runs.reaching(found, "stock-full") is None


def test_a_known_exponent_is_found():
    def row(batch, seconds):
        return Row(
            level="scaling",
            case="",
            provider="p",
            trains="bn",
            depth=8,
            width=8,
            size=8,
            batch_size=batch,
            seconds=seconds,
        )

    (curve,) = fitted([row(2, 1.0), row(4, 2.0), row(8, 8.0)])
    assert (
        curve.axis == "batch_size"
        and curve.exponent == pytest.approx(1.5)
        and curve.steepest == pytest.approx(2.0)
    )
    assert fitted([row(2, 1.0), row(4, 2.0)]) == []


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
@pytest.mark.skipif(not process.STATUS.exists(), reason="peak resident memory is read from /proc")
def test_a_step_tells_its_peak():
    provider = next(p for p in providers(TINY, CPU) if p.name.startswith("fastbn"))
    found = memory.measure(provider, TINY)
    assert found[memory.PEAK] >= found["later_less_idle_bytes"] >= 0 and found["idle_bytes"] > 1e7


@pytest.mark.slow
@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
@pytest.mark.skipif(not process.STATUS.exists(), reason="peak resident memory is read from /proc")
def test_a_fresh_process_tells_its_peak():
    provider = next(p for p in providers(TINY, CPU) if p.name.startswith("fastbn"))
    assert memory.fresh(provider, TINY)[memory.PEAK] > 0


def test_a_first_call_s_check_is_measured_beside_a_forward_and_the_steps_after_it():
    record = new()
    first_call.first_call(record, first_call.RESNET20, [1, 3], 2)
    first_call.steps(record, 2, 2)
    assert [row.batch_size for row in record.rows] == [1, 1, 3, 3, 2, 2]
    assert all(row.level in LEVELS and row.seconds and row.n == 2 for row in record.rows)
    forwards = [row.more["forwards"] for row in record.rows if row.provider == first_call.CHECK]
    assert len(forwards) == 2 and min(forwards) > 0
