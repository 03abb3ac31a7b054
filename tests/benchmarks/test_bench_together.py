"""bench.record --together: what runs of several seeds reached, with the device and its instruction set."""

import json

import pytest
import torch
from runs import train

from bench import record
from bench.records.conditions import conditions
from fastbn.machine import devices

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of one run."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        assert train(folder / f"s{seed}", "--seed", str(seed), epochs=1) == 0
    return folder / "s0", folder / "s1"


def summary(run):
    return json.loads((run / "summary.json").read_text())


def test_a_device_is_named_with_its_instruction_set(runs, monkeypatch):
    cpu = torch.device("cpu")
    for told, flags, said in (
        ("AVX512", "fma avx512f", "AVX-512"),
        ("AVX2", "fma avx2", "AVX2"),
        ("AVX2", "avx512f", "AVX2 emulated"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(torch.backends.cpu, "get_cpu_capability", lambda told=told: told)
            patched.setattr(
                devices, "_cpuinfo", lambda name, flags=flags: {"flags": flags, "model name": "A CPU"}[name]
            )
            assert devices.describe(cpu) == f"A CPU, {said}, 1 thread"
    assert summary(runs[0])["device"] == devices.describe(cpu)
    assert conditions()["device"] == devices.describe(cpu)


def test_one_record_of_several_runs(runs, tmp_path, capsys):
    record.main(["--together", "tiny", "--results", str(tmp_path), *map(str, runs)])
    (several,) = tmp_path.glob("runs-tiny-*.json")
    assert capsys.readouterr().out.splitlines() == [str(several)]
    found = json.loads(several.read_text())
    accuracies = [summary(run)["test_accuracy"] for run in runs]
    (device,) = found["devices"]
    assert device["device"] == summary(runs[0])["device"] and device["accuracy_by_seed"] == dict(
        zip("01", accuracies, strict=True)
    )
    assert found["all"]["mean"] == pytest.approx(sum(accuracies) / 2) and found["all"]["least"] == min(
        accuracies
    )
    assert found["all"]["standard_deviation"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    assert str(runs[0].parent) not in several.read_text() and found["config"]["depth"] == 8


def test_runs_that_differ_in_more_are_not_recorded_together(runs, tmp_path, capsys):
    other = tmp_path / "other"
    assert train(other, "--lr", "0.01", epochs=1) == 0
    with pytest.raises(SystemExit):
        record.main(["--together", "tiny", "--results", str(tmp_path), str(runs[0]), str(other)])
    assert "differ by seed and machine alone, and these in lr too" in capsys.readouterr().err
