"""The benchmarks themselves: what they record, in which order they time, and that the gate and the guard
turn red."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # bench/ is not installed

from bench import guard, memory  # noqa: E402
from bench.records.rows import Record, Row, load  # noqa: E402
from bench.report import readme  # noqa: E402
from bench.suite import clock, costs, gate, kernels, measure, process, runs  # noqa: E402
from bench.suite.cases import Blocks, Case, grid  # noqa: E402
from bench.suite.providers import few, left_out, providers  # noqa: E402
from bench.suite.scaling import fitted  # noqa: E402
from bench.suite.session import play  # noqa: E402
from bench.suite.summary import lines  # noqa: E402
from fastbn.engine.interface import Execution  # noqa: E402
from fastbn.engine.native import build  # noqa: E402
from fastbn.engine.select import choose  # noqa: E402
from fastbn.errors import MachineError, UsageError  # noqa: E402

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*Benchmark")]
RATES = {"copy_bytes_per_second": 1e10, "matmul_flops_per_second": 1e11}
CPU, TINY = torch.device("cpu"), Case(8, 4, 8, width=8)


@pytest.fixture
def engine():
    """What auto means here: natively compiled where there is a compiler."""
    return choose("auto", CPU, torch.float32)[0]


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
    assert (
        "gradients of γ and β are off by" in ours.row.failed and ours.row.seconds is None and not ours.samples
    )
    assert all(
        own.row.seconds and not own.row.failed for name, own in found.items() if name.startswith("stock")
    )
    with pytest.raises(guard.Slow, match="off by"):
        guard.check(TINY, 0.0, CPU, (3,))
    (_, samples), = [own for (cache, name), own in kernels.measure(Blocks(8, 8, 2), "∇conv2", CPU, RATES,
    3).items()
                     if name.startswith("fastbn") and cache == "cold"]  # fmt: skip
    assert not samples


def test_a_slowed_engine_turns_the_guard_red(engine, monkeypatch, tmp_path, capsys):
    """The kernels of a net this small are no faster than stock's: 0.02 only says that both are timed."""
    floors = tmp_path / "floors.json"
    held = {"depth": 8, "batch_size": 4, "size": 8, "width": 8}
    floors.write_text(json.dumps({engine.name: [held | {"floor": 0.02}]}))
    assert guard.main([], floors, (3,)) == 0
    floors.write_text(json.dumps({engine.name: [held | {"floor": 0.5}]}))
    timed(monkeypatch, [1, 1, 1], [0.4, 0.4, 0.6], [3, 3, 3])
    assert guard.main([], floors, (3, 4)) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "measured again, with 4 rounds" in said[0]  # a first fail is not yet a verdict
    assert said[1].startswith("guard failed: ResNet-8, width 8") and "floor 0.50×, 4 rounds" in said[1]


def test_the_floors_are_80_percent_of_what_is_on_record():
    kept = json.loads(guard.FLOORS.read_text(encoding="utf-8"))
    assert set(kept) == {"about", "native", "triton"}
    for entry in (*kept["native"], *kept["triton"]):
        floor, figures = entry.pop("floor"), entry.pop("measured", [])
        assert floor > 0 and Case(**entry)
        if figures:
            assert floor == pytest.approx(0.8 * min(each["ratio"] for each in figures), abs=0.01)
        for each in figures:
            assert each["device"] and each["versions"] and each["date"] and each["q1"] <= each["q3"]


def timed(monkeypatch, *seconds):
    """Every case takes these seconds per round: fastbn's, stock's, another of stock's."""
    names = ("fastbn native", "stock-bn channels-last", "stock-full channels-last")

    def steps(level, case, everyone, device, rounds, *more):
        found = {}
        for name, own in zip(names, seconds, strict=True):
            row = Row(level=level, case=case.title, provider=name, trains="bn").time(own)
            found[name] = measure.Measured(row, own)
        return found

    monkeypatch.setattr(measure, "steps", steps)


def test_the_guard_takes_the_median_of_the_ratios_per_round(monkeypatch):
    """A machine that slows down by 10 in the midst of it leaves every round's ratio as it was; here the
    ratio of the medians would be 0.2."""
    timed(monkeypatch, [1, 10, 10], [2, 2, 20], [3, 3, 30])
    found = guard.lead(TINY, CPU, 3)
    assert found.ratios == [2, 0.2, 2] and found.median == 2
    assert "2.00×, floor 1.90×" in guard.check(TINY, 1.9, CPU, (3,))
    with pytest.raises(guard.Slow):
        guard.check(TINY, 2.1, CPU, (3, 3))


def test_the_floors_are_written_from_what_is_measured(monkeypatch, tmp_path, engine):
    """The least of several devices' figures counts; another engine's floors stay."""
    timed(monkeypatch, [1, 1, 1], [2, 2, 2], [3, 3, 3])
    case, floors = {"depth": 8, "batch_size": 4, "size": 8, "width": 8}, tmp_path / "floors.json"
    other = {"ratio": 1.5, "q1": 1.4, "q3": 1.6, "device": "Another CPU", "versions": {}, "date": "2026"}
    kept = {"about": "…", engine.name: [case | {"floor": 9.0, "measured": [other]}, case], "other": [1]}
    floors.write_text(json.dumps(kept))
    assert guard.main(["--measure"], floors, (3,)) == 0
    found = json.loads(floors.read_text())
    both, alone = found[engine.name]
    assert both["floor"] == 1.2 and alone["floor"] == 1.6 and found["other"] == [1]
    assert [each["ratio"] for each in both["measured"]] == [1.5, 2.0] and both["measured"][0] == other
    assert guard.main(["--measure"], floors, (3,)) == 0 and json.loads(floors.read_text()) == found
    timed(monkeypatch, [1, 1, 1], [1.1, 1.1, 1.1], [3, 3, 3])
    assert guard.main([], floors, (3,)) == 1


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
    assert found["stock-bn channels-last"].row.failed == "RuntimeError: recompile limit"
    assert measure.best(own.row for own in found.values()).provider == "stock-full channels-last"


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
    row = found["stock-full channels-last"].row
    assert (
        row.hopeless
        and "one step took 10000.0 s" in row.failed
        and row.seconds is None
        and not row.gradient_error
    )
    assert taken["stock-full channels-last"] == 1 < taken["stock-bn channels-last"]
    assert all(own.row.seconds for own in found.values() if own.row is not row)
    record = Record(
        conditions={"device": "d", "date": "2026"}, machine=RATES, rows=[own.row for own in found.values()]
    )
    assert "| 10,000 s, one step, not timed |" in readme.steps([record])
    assert any(line.split() == f"stock-full channels-last {row.failed}".split() for line in lines(record))
    with pytest.raises(pytest.skip.Exception, match="hopeless"):
        play(None, found["stock-full channels-last"])
    # no limit, no haste
    assert not measure.steps("step", TINY, chosen, CPU, 3)["stock-full channels-last"].row.failed


def test_what_does_not_fit_side_by_side_is_timed_alone_and_says_so(monkeypatch):
    monkeypatch.setattr(measure, "free_bytes", lambda device: 0)
    found = measure.steps("step", TINY, few(providers(TINY, CPU), "eager"), CPU, 3)
    assert all(own.row.alone and own.row.seconds for own in found.values())


def test_fused_and_stock_kernels_are_float64s(monkeypatch):
    monkeypatch.setitem(kernels.FLUSH, "cpu", 1 << 20)  # of which nothing is measured here
    for operation in kernels.OPERATIONS:
        # 7: no whole number of Winograd's tiles
        found = kernels.measure(Blocks(8, 7, 3), operation, CPU, RATES, 3)
        assert {cache for cache, _ in found} == set(kernels.CACHES)
        for row, samples in found.values():
            assert row.failed is None and len(samples) == 3 and row.moved_bytes
            assert 0 < row.gradient_error < kernels.allowed(Blocks(8, 7, 3))


def test_stock_gradient_kernels_are_autograds_own():
    given = kernels.inputs(Blocks(8, 7, 3), CPU)
    y, gamma, beta = (t.clone().requires_grad_() for t in (given.y, given.gamma, given.beta))
    z = torch.relu(torch.nn.functional.batch_norm(y, None, None, gamma, beta, True))
    torch.nn.functional.conv2d(z, given.weight, padding=1).backward(given.dy)
    _, dgamma, dbeta, dy = kernels.stock("∇conv2", given)()
    assert torch.equal(dgamma, gamma.grad) and torch.equal(dbeta, beta.grad) and torch.equal(dy, y.grad)


def test_an_identity_block_costs_what_the_design_says():
    """In units of A, one activation: fused 6 forward and 9 backward, a bit an element of mask aside; stock
    17 and 23."""
    blocks = Blocks(16, 8, 4)
    A = 4 * 4 * 16 * 8 * 8

    def moved(provider, *operations):
        found = [kernels.cost(blocks, operation, provider) for operation in operations]
        return round(sum(each.read + each.written for each in found) / A)

    assert moved("fastbn", "conv1", "conv2") == 6 and moved("fastbn", "∇conv1", "∇conv2") == 9
    assert moved(kernels.STOCK, "conv1", "conv2") == 17 and moved(kernels.STOCK, "∇conv1", "∇conv2") == 23
    assert moved(kernels.ALONE, "conv2") == moved(kernels.ALONE, "∇conv2") == 2


def test_costs_of_a_network_with_pooling_between_its_regions():
    case = Case(18, 2, 32, width=8)
    (_, first, wanted), (_, second, passed) = costs.regions(case)
    assert (
        first == ((2, 3, 32, 32),) and wanted == (False,) and second == ((2, 8, 8, 8),) and passed == (True,)
    )


def test_the_time_to_the_accuracy_at_which_fastbn_ends():
    def epochs(provider, *accuracies):
        rows = [Row(level="run", case="c", provider=provider, trains="all", seconds=2.0 * (i + 1),
        accuracy=a, epochs=i + 1)
                for i, a in enumerate(accuracies)]  # fmt: skip
        return [measure.Measured(row, [row.seconds]) for row in rows]

    found = {
        "stock-full": epochs("stock-full", 0.3, 0.6, 0.9),
        "fastbn native": epochs("fastbn native", 0.2, 0.3, 0.5),
    }
    assert (
        runs.reaching(found, "stock-full").row.epochs == 2
        and runs.reaching(found, "fastbn native").row.epochs == 3
    )
    assert runs.said(found)[0].endswith("where fastbn ends it was after 4.0 s, 2 of 3 epochs")
    found["stock-full"] = epochs("stock-full", 0.3, 0.4)
    assert runs.reaching(found, "stock-full") is None and runs.said(found)[0].endswith(
        "it never was where fastbn ends"
    )


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


def test_a_cpu_offers_no_provider_of_cudas():
    assert not any(
        "amp" in provider.name or "graph" in provider.name for provider in providers(TINY, CPU, compiled=True)
    )
    assert left_out(CPU, True) and not any(case.precision != "fp32" for case in grid("full", CPU).steps)
    with pytest.raises(MachineError, match="mixed precision is measured on CUDA"):
        providers(Case(8, 4, 8, precision="mixed"), CPU)
    with pytest.raises(UsageError, match="--grid must be tiny, default or full, got 'huge'"):
        grid("huge", CPU)


def test_a_gpu_has_every_provider(monkeypatch):
    """Names are compared; nothing runs."""
    engine = type("Engine", (), {"name": "triton", "execution": Execution.CUDA_GRAPH})
    monkeypatch.setattr("bench.suite.providers.choose", lambda *_: (engine, ""))
    cuda = torch.device("cuda")
    full = {
        provider.name.removeprefix("stock-full ")
        for provider in providers(TINY, cuda, True)
        if provider.trains == "all"
    }
    assert full == {"stock-full", "channels-last", "compiled", "graph"}
    mixed = {
        provider.name
        for provider in providers(Case(8, 4, 8, precision="mixed"), cuda, True)
        if provider.trains == "bn"
    }
    assert mixed == {
        "stock-bn channels-last amp-fp16", "stock-bn channels-last "
                                           "amp-bf16", "stock-bn compiled "
                                                       "amp-bf16", "stock-bn graph amp-bf16",
        "fastbn triton", "fastbn triton graph",
    }  # fmt: skip


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
