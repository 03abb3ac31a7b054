"""bench.tune: the Triton engine's table, at toy sizes in the interpreter, and that the engine reads what it holds."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("it would measure this GPU for minutes; bench/gpu_check.sh is for that", allow_module_level=True)

from operations import Case

from bench.tune import __main__ as command
from bench.tune import triton
from fastbn.engine import configurations
from fastbn.engine.configurations import Choice, Key
from fastbn.engine.triton import Triton

CONV = Case("", 2, 6, 6, 16, 16).conv()


@pytest.fixture
def table(monkeypatch, tmp_path):
    """A table of this test's own."""
    path = tmp_path / "configurations.json"
    monkeypatch.setattr(configurations, "TABLE", path)
    for read in (configurations.table, configurations.dependent, configurations.packed):
        read.cache_clear()
    yield path
    for read in (configurations.table, configurations.dependent, configurations.packed):
        read.cache_clear()


def test_a_row_holds_the_fastest_of_what_agrees(table, monkeypatch):
    hopper = dataclasses.asdict(Key(90, False, 16, 32, False)) | dataclasses.asdict(Choice(1, 1, 1, True))
    early = {"capability": 90, "dependent": True, "packed": False}
    table.write_text(json.dumps({"launches": [early], "rows": [hopper]}))
    seconds = iter([3.0, 1.0, 2.0] * 4)
    monkeypatch.setattr(triton, "device_seconds", lambda call: next(seconds))
    found = triton.tune(2, 1, ((16, 6),))
    other, *own = found["rows"]
    assert found["launches"] == [early]  # the interpreter has none
    assert other["capability"] == 90 and [row["capability"] for row in own] == [0] * 4
    for row in own:
        key = Key(0, row["backward"], 16, 6, row["wide"])
        assert (row["rows"], row["warps"]) == (2, configurations.rule(key).warps) and row["rows"] != configurations.rule(key).rows
        assert len(row["measured"]) == 3 and not row["left_out"]


def test_a_candidate_that_is_wrong_is_left_out(table, monkeypatch):
    table.write_text('{"launches": [], "rows": []}')
    errors = iter([0.0, 1.0, 0.0] * 8)
    monkeypatch.setattr(triton, "relative", lambda found, expected: next(errors))
    row = triton.tune(2, 1, ((16, 6),))["rows"][0]
    assert len(row["measured"]) == 2 and "differs" in row["left_out"][0]["why"]


def test_the_engine_takes_what_was_measured_and_else_the_rule(table):
    key = Key(90, False, 16, 32, False)
    table.write_text(json.dumps({"launches": [], "rows": [dataclasses.asdict(key) | dataclasses.asdict(Choice(32, 2, 8, False))]}))
    measured = configurations.roll(CONV, (32, 32), torch.float16, 90, False)
    assert (measured.rows, measured.warps, measured.keep) == (2, 8, False)
    ruled = configurations.roll(CONV, (32, 32), torch.float16, 90, True)
    assert (ruled.rows, ruled.warps, ruled.keep) == (configurations.rule(dataclasses.replace(key, backward=True)).rows, 4, True)


def test_kernels_begin_early_where_that_was_measured_and_can_be(table):
    switches = {80: (True, True), 90: (True, False), 100: (False, True)}
    rows = [{"capability": device, "dependent": dependent, "packed": packed} for device, (dependent, packed) in switches.items()]
    table.write_text(json.dumps({"launches": rows, "rows": []}))
    assert [configurations.dependent(device) for device in (0, 80, 90, 100, 120)] == [False, False, True, False, False]
    rolls = [configurations.roll(CONV, (32, 32), torch.float16, device, True) for device in (0, 80, 90, 100)]
    assert [roll.packed for roll in rolls] == [False, True, False, True]


def test_one_row_bands_are_tried_at_64_channels():
    tried = {channels: [choice.rows for choice in triton.candidates(Key(90, False, channels, 8, False))] for channels in (16, 32, 64)}
    assert tried == {16: [4, 2, 4], 32: [2, 4, 2], 64: [2, 4, 1, 2]}
    assert triton.candidates(Key(90, False, 64, 8, False))[0] == Choice(64, 2, 4, True)


def launched(monkeypatch, seconds, packed=False):
    """Of a step that takes these seconds in the ordinary way, begun early, and packed."""
    times = itertools.cycle(seconds)
    monkeypatch.setattr(triton, "device_seconds", lambda call: next(times))
    return triton.launched(2, 1, packed, 8, 8)


@pytest.mark.slow
def test_kernels_begin_early_where_that_is_faster(monkeypatch):
    found = launched(monkeypatch, [2.0, 1.0, 1.0])
    assert found["dependent"] and found["elements_that_differ_early"] == 0 and not found["packed"]  # which was not asked for
    assert 1e-5 < found["relative_difference_packed"] < 1e-2


@pytest.mark.slow
def test_packed_where_it_is_asked_for_and_faster(monkeypatch):
    found = launched(monkeypatch, [2.0, 3.0, 1.0], True)
    assert not found["dependent"] and found["packed"] and found["microseconds"] == {"ordinary": 2e6, "early": 3e6, "packed": 1e6}


@pytest.mark.slow
def test_other_bits_do_not_begin_early(monkeypatch):
    """As a kernel would leave them that does not wait: here the second network's first convolution is off."""
    right, networks = Triton.pack, []

    def pack(self, conv, weight, *dtypes):
        if conv.name == "conv1":
            networks.append(weight)
        return right(self, conv, weight * (1.01 if len(networks) > 1 else 1), *dtypes)

    monkeypatch.setattr(Triton, "pack", pack)
    found = launched(monkeypatch, [2.0, 1.0, 3.0], True)
    assert not found["dependent"] and found["elements_that_differ_early"] > 0 and not found["packed"]


def test_what_ships_can_be_read():
    configurations.table.cache_clear()
    assert all(isinstance(row[switch], bool) for row in configurations.read("launches") for switch in ("dependent", "packed"))
    assert all(isinstance(choice, Choice) for choice in configurations.table().values())


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert command.main(["--engine", "triton"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_the_native_table_is_printed_and_not_written(monkeypatch, capsys):
    from bench.tune import native
    from fastbn.engine.algorithms import TABLE

    before = TABLE.read_bytes()
    monkeypatch.setattr(native, "CHANNELS", {8: 8})
    assert command.main(["--engine", "native", "--images", "2", "--rounds", "1", "--dry-run"]) == 0
    assert "8 channels" in capsys.readouterr().out and TABLE.read_bytes() == before
