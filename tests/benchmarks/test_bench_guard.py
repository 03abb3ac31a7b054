"""bench.guard: red where fastbn is slower than the floor, which is 80 percent of what is on record."""

import json

import pytest
from suite_cases import CPU, TINY

from bench import guard
from bench.records.rows import Row
from bench.suite import measure
from bench.suite.cases import Case

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*Benchmark")]


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
            found[name] = Row(level=level, case=case.title, provider=name, trains="bn").time(own)
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
