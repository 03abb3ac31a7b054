"""bench.tune: the Triton engine's table, at toy sizes in the interpreter, and that the engine reads what
it holds."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip(
        "it would measure this GPU for minutes; bench/gpu_check.sh is for that", allow_module_level=True
    )

from nets import resnet
from tune_table import CONV, TILE, Same, kept

from bench.oracle.networks import flip_free, images
from bench.oracle.stock import error, flat_gradient, run
from bench.tune import __main__ as command
from bench.tune import compete, launches, rolling
from fastbn import explain, fuse
from fastbn.engine.triton import tuning, tuning_table
from fastbn.engine.triton.engine import Triton
from fastbn.engine.triton.tuning import LIBRARY, ROLLING, TAPS
from fastbn.engine.triton.tuning_table import Choice, Key, TunedLayer, shipped


def test_a_row_holds_the_fastest_of_what_agrees(table, monkeypatch):
    hopper = dataclasses.asdict(Key(90, False, 16, 32, False)) | dataclasses.asdict(Choice(1, 1, 1, True))
    early = {"capability": 90, "dependent": True}
    old = dataclasses.asdict(Key(0, False, 16, 3, False)) | dataclasses.asdict(Choice(1, 1, 1, True))
    table(launches=[early], rolling=[hopper, old])
    seconds = itertools.cycle([3.0, 1.0, 2.0, 4.0])
    keys = [Key(0, False, 16, 3, False), Key(0, True, 16, 3, True)]
    monkeypatch.setattr(rolling, "keys", lambda: keys)
    monkeypatch.setattr(compete, "device_seconds", lambda call, device: next(seconds))
    assert command.main(["--engine", "triton", "--images", "1", "--rounds", "1", "--only", "rolling"]) == 0
    found = kept(table)
    other, *own = found["rolling"]
    assert found["launches"] == [early] and set(found["conditions"]) == {"0"}
    assert other == hopper and [row["capability"] for row in own] == [0] * 2
    for row in own:
        key = Key(0, row["backward"], 16, 3, row["wide"])
        assert (row["rows"], row["warps"]) == (2, tuning.rule(key).warps) and row["rows"] != tuning.rule(
            key
        ).rows
        assert len(row["measured"]) == 4 and not row["left_out"]
        assert shipped().rolls[key] == Choice(row["row"], 2, row["warps"], row["keep"])


def test_a_candidate_that_is_wrong_is_left_out(monkeypatch):
    errors = iter([0.0, 1.0, 0.0, 0.0])
    monkeypatch.setattr(rolling, "_Make", Same)
    monkeypatch.setattr(compete, "relative", lambda found, expected: next(errors))
    row = rolling.row(Key(0, False, 16, 3, False), 2, 1)
    assert len(row["measured"]) == 3 and "differs" in row["left_out"][0]["why"]


def test_a_candidate_that_fails_is_left_out():
    def make(candidate):
        return lambda: torch.ones(2) / candidate

    middle, left_out = compete.compete([1, 0, "none", 1 + 1e-7], make, 1e-5, 1)
    assert (
        list(middle) == [1, 1 + 1e-7]
        and left_out[0] == "differs by inf"
        and left_out["none"].startswith("TypeError")
    )


def test_a_row_without_candidates_stays(table, monkeypatch, capsys):
    monkeypatch.setattr(rolling, "SHAPES", ((16, 3),))
    monkeypatch.setattr(rolling, "_Make", Same)
    monkeypatch.setattr(compete, "relative", lambda found, expected: float("inf"))
    assert command.main(["--engine", "triton", "--images", "1", "--only", "rolling"]) == 0
    assert (
        capsys.readouterr().out.count("stays as it was: no candidate is left") == 4
        and kept(table)["rolling"] == []
    )


def test_rows_for_which_no_time_is_left_stay(table, capsys):
    assert command.main(["--engine", "triton", "--only", "rolling", "--seconds", "0"]) == 0
    assert "no time was left for 16 rows" in capsys.readouterr().out and kept(table)["rolling"] == []


def gradients(model, x):
    return flat_gradient(run(model, x))


@pytest.mark.parametrize("by", [pytest.param(TAPS, marks=pytest.mark.slow), LIBRARY])
def test_a_network_takes_what_was_measured(by, table):
    """All of its convolutions of one shape by another kernel than the rule's, to the same result;
    explain() says so."""
    model = flip_free(resnet(8, 16)).float()
    right = gradients(fuse(copy.deepcopy(model), "triton"), images(2, 5, 5, dtype=torch.float32))
    row = {"algorithm": by, "forward": dataclasses.asdict(TILE), "backward": dataclasses.asdict(TILE)}
    table(convolutions=[dataclasses.asdict(TunedLayer(0, 16, 16, 3, 1, 5)) | row])
    fused = fuse(model, "triton")
    found = gradients(fused, images(2, 5, 5, dtype=torch.float32))
    assert 0 < error(found, right) < 2e-5
    assert explain(fused, (3, 5, 5)).algorithms == {
        TAPS: 5 + 2 * (by == TAPS),
        ROLLING: 2,
        **({LIBRARY: 2} if by == LIBRARY else {}),
    }


def test_the_engine_takes_what_was_measured_and_else_the_rule(table):
    key = Key(90, False, 16, 32, False)
    table(rolling=[dataclasses.asdict(key) | dataclasses.asdict(Choice(32, 2, 8, False))])
    found = tuning.roll(CONV, (32, 32), torch.float16, 90, False, shipped())
    assert (found.rows, found.warps, found.keep) == (2, 8, False)
    ruled = tuning.roll(CONV, (32, 32), torch.float16, 90, True, shipped())
    assert (ruled.rows, ruled.warps, ruled.keep) == (
        tuning.rule(dataclasses.replace(key, backward=True)).rows,
        4,
        True,
    )


def test_kernels_begin_early_where_that_was_measured_and_can_be(table):
    switches = {80: True, 90: True, 100: False}
    table(launches=[{"capability": device, "dependent": early} for device, early in switches.items()])
    assert [shipped().begins_early(device) for device in (0, 80, 90, 100, 120)] == [
        False,
        False,
        True,
        False,
        False,
    ]


def test_bands_of_one_row_are_tried_at_64_channels_and_of_eight_at_16():
    tried = {
        channels: [choice.rows for choice in rolling.candidates(Key(90, False, channels, 8, False))]
        for channels in (16, 32, 64)
    }
    assert tried == {16: [4, 2, 8, 4], 32: [2, 4, 2], 64: [2, 4, 1, 2]}
    assert rolling.candidates(Key(90, False, 64, 8, False))[0] == Choice(64, 2, 4, True)


def launched(monkeypatch, seconds):
    """Return the row of a step that takes these seconds in the ordinary way, and begun early."""
    times = itertools.cycle(seconds)
    monkeypatch.setattr(launches, "device_seconds", lambda call, device: next(times))
    return launches.row(2, 1, 8, 8)


@pytest.mark.slow
def test_kernels_begin_early_where_that_is_faster(monkeypatch):
    found = launched(monkeypatch, [2.0, 1.0])
    assert found["dependent"] and found["elements_that_differ_early"] == 0


@pytest.mark.slow
def test_other_bits_do_not_begin_early(monkeypatch):
    """A kernel that does not wait would leave such bits: here the second network's first convolution is
    off."""
    right, networks = Triton.pack, []

    def pack(self, conv, weight, *dtypes):
        if conv.name == "conv1":
            networks.append(weight)
        return right(self, conv, weight * (1.01 if len(networks) > 1 else 1), *dtypes)

    monkeypatch.setattr(Triton, "pack", pack)
    found = launched(monkeypatch, [2.0, 1.0])
    assert not found["dependent"] and found["elements_that_differ_early"] > 0


def test_what_ships_can_be_read():
    assert all(isinstance(row["dependent"], bool) for row in tuning_table.read("launches"))
    assert all(isinstance(choice, Choice) for choice in shipped().rolls.values())
    assert all(way.algorithm in (TAPS, ROLLING, LIBRARY) for way in shipped().ways.values())
    assert all(
        tuning_table.read(part) or part != "conditions"
        for part in ("launches", "convolutions", "rolling")
        if tuning_table.read("conditions")
    )


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert command.main(["--engine", "triton"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_the_native_table_is_printed_and_not_written(monkeypatch, capsys):
    from bench.tune import native
    from fastbn.engine.native.algorithms import TABLE

    before = TABLE.read_bytes()
    monkeypatch.setattr(native, "SHAPES", ((8, 8),))
    assert command.main(["--engine", "native", "--images", "1", "--rounds", "1", "--dry-run"]) == 0
    assert "8 channels" in capsys.readouterr().out and TABLE.read_bytes() == before


def test_the_native_table_of_other_instruction_sets_stays(monkeypatch):
    import json

    from bench.tune import native
    from fastbn.engine.native import algorithms

    monkeypatch.setattr(native, "SHAPES", ((8, 4),))
    before, built = json.loads(algorithms.TABLE.read_text(encoding="utf-8")), native.Native().instructions
    found = native.tune(1, 1)
    assert {**found, built: None} == {**before, built: None}
    assert [row["channels"] for row in found[built]["rows"]] == [8] and {"device", "date", "versions"} <= set(
        found[built]
    )
