"""A visit to a GPU by a clock of the test's own: order, the time of each stage, records, resumption."""

from __future__ import annotations

import json
import tarfile

import pytest

from bench.gpu import visit


class Machine:
    """Runs nothing: each stage takes the seconds and ends with the code that it is given here."""

    def __init__(self, takes=None, codes=None):
        self.now, self.ran, self.takes, self.codes = 0.0, [], takes or {}, codes or {}

    def clock(self):
        return self.now

    def run(self, words, seconds):
        name = next(
            (s.name for s in visit.SHORT if list(s.arguments) == words[3 : 3 + len(s.arguments)]), "merge"
        )
        self.ran.append((name, seconds))
        taken = min(self.takes.get(name, seconds), seconds + visit.GRACE)
        self.now += 1.0 if name == "merge" else taken
        return self.codes.get(name, 0)


def visited(tmp_path, machine, minutes=10, **more):
    code = visit.visit(tmp_path, visit.SHORT, minutes, run=machine.run, clock=machine.clock, **more)
    return code, json.loads((tmp_path / "visit.json").read_text())["rows"]


def test_what_matters_most_comes_first_and_ten_minutes_hold_everything(tmp_path):
    machine = Machine()
    code, rows = visited(tmp_path, machine)
    names = [row["stage"] for row in rows]
    assert code == 0 and names == [stage.name for stage in visit.SHORT]
    assert (
        names[:4] == ["compile", "correctness", "step-866x128", "step-866x1024"] and names[-1] == "train-14"
    )
    assert machine.ran[-1][0] == "merge" and machine.now <= 600
    assert sum(row["seconds"] for row in rows) == pytest.approx(600 - visit.MERGE, rel=1e-3)


def test_what_a_stage_saves_goes_to_those_after_it(tmp_path):
    quick, slow = Machine({"compile": 1.0}), Machine()
    after = {row["stage"]: row["seconds_allowed"] for row in visited(tmp_path / "a", quick)[1]}
    full = {row["stage"]: row["seconds_allowed"] for row in visited(tmp_path / "b", slow)[1]}
    assert all(after[name] > full[name] for name in full if name != "compile")
    assert quick.now <= 600


def test_stages_that_hang_leave_the_rest_out_and_say_so(tmp_path):
    machine = Machine({stage.name: 1e9 for stage in visit.SHORT}, {stage.name: 124 for stage in visit.SHORT})
    code, rows = visited(tmp_path, machine, minutes=2)
    left = [row["stage"] for row in rows if "left_out" in row]
    assert code == 0 and rows[0]["exit_code"] == 124 and left and machine.ran[-1][0] == "merge"
    assert len(rows) == len(visit.SHORT)


def test_a_failure_does_not_end_the_others(tmp_path):
    machine = Machine(codes={"correctness": 1})
    code, rows = visited(tmp_path, machine)
    assert code == 1 and len(rows) == len(visit.SHORT) and machine.ran[-1][0] == "merge"


def test_what_is_missing_ends_the_visit(tmp_path):
    machine = Machine(codes={"compile": 2})
    assert visited(tmp_path, machine)[0] == 2 and [name for name, _ in machine.ran] == ["compile"]


def test_a_resumed_visit_begins_with_what_has_not_finished(tmp_path):
    first = Machine(codes={"step-866x128": 1})
    visited(tmp_path, first)
    second = Machine()
    code, rows = visited(tmp_path, second, resume=True)
    assert code == 0 and [name for name, _ in second.ran] == ["step-866x128", "merge"]
    assert {row["stage"] for row in rows} == {stage.name for stage in visit.SHORT}


def test_everything_found_lies_in_one_archive(tmp_path):
    pack = tmp_path / "all.tar.gz"
    visited(tmp_path / "out", Machine(), pack=pack)
    with tarfile.open(pack) as archive:
        assert "out/visit.json" in archive.getnames() and "tuning.json" in archive.getnames()


@pytest.mark.parametrize(
    ("only", "minutes", "small", "first", "count"),
    [("", 10, False, "compile", len(visit.SHORT)), ("", None, False, "compile", len(visit.LONG)),
     ("step-866x128,train-14", 5, False, "step-866x128", 2), ("tune", None, False, "tune-rolling", 3),
     ("", None, True, "compile", len(visit.SMALL))],
)  # fmt: skip
def test_the_stages_asked_for(only, minutes, small, first, count):
    stages, given = visit.chosen(only, minutes, small)
    assert stages[0].name == first and len(stages) == count and given == (minutes or 8.0 * count)


@pytest.mark.slow
def test_a_whole_visit_in_the_interpreter(tmp_path):
    """The script itself at toy sizes: every stage leaves a record, and they are put together."""
    import os
    import subprocess

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", str(visit.ROOT / "bench" / "gpu_check.sh"), "--small", "--minutes", "12", "--out",
        str(tmp_path)],
        capture_output=True, text=True, env=environment, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = {row["stage"]: row for row in json.loads((tmp_path / "visit.json").read_text())["rows"]}
    assert all(rows[stage.name]["exit_code"] == 0 for stage in visit.SMALL), rows
    (merged,) = (tmp_path / "results").glob("*.json")
    assert {"correctness", "train-resnet8"} <= json.loads(merged.read_text())["stages"].keys()
