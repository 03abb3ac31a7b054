"""--replicas: several runs in one process, each with the folder that it would have alone."""

from __future__ import annotations

import dataclasses
import json
import signal
import time

import pytest
from runs import STEPS, TINY, assert_same_run, at_call, checkpoint, contents, metrics, start
from runs import train as alone
from small_experiments import Pretended

from fastbn.errors import MachineError
from fastbn.experiments import launch
from fastbn.experiments.preset import Line, jobs, shard
from fastbn.experiments.presets import PRESETS
from fastbn.experiments.replicas import main
from fastbn.experiments.results import outcome
from fastbn.run.folder import RunFolder
from fastbn.training.step import TrainingStep

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS, EPOCHS = (0, 1, 2), 2
# each holds out others, by its seed; 56 are left: 24, 24 and a ragged 8
ADAM = ("--optimizer", "adam", "--lr", "0.01", "--val", "8")


def words(folder, *more, epochs=EPOCHS, **own):
    """Return the arguments of three replicas; own: those of one alone, as s1=[…]."""
    found = []
    for seed in SEEDS:
        found += ["--"] * bool(found) + [
            *TINY,
            "--epochs",
            str(epochs),
            "--seed",
            str(seed),
            *more,
            *own.get(f"s{seed}", []),
        ]
        found += ["--out", str(folder / f"s{seed}"), "--resume"]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(the arguments, the folder of the runs, each by itself)"""
    folder = tmp_path_factory.mktemp("alone")
    for seed in SEEDS:
        assert alone(folder / f"s{seed}", "--seed", str(seed), *ADAM, epochs=EPOCHS) == 0
    return ADAM, folder


def assert_same_runs(folder, whole):
    for seed in SEEDS:
        assert_same_run(folder / f"s{seed}", whole[1] / f"s{seed}")


def log(folder, seed):
    return (folder / f"s{seed}" / launch.LOG).read_text()


def test_the_folders_of_replicas_are_those_of_runs(whole, tmp_path, capfd):
    assert main(words(tmp_path, *whole[0])) == 0
    assert_same_runs(tmp_path, whole)
    assert capfd.readouterr() == ("", "")
    for seed in SEEDS:
        own, expected = tmp_path / f"s{seed}", whole[1] / f"s{seed}"
        assert contents(own).keys() == contents(expected).keys() | {launch.LOG}
        found, wanted = (json.loads((folder / "config.json").read_text()) for folder in (own, expected))
        assert {**found, "out": None, "resume": None} == {**wanted, "out": None, "resume": None}
        found, wanted = (json.loads((folder / "summary.json").read_text()) for folder in (own, expected))
        assert found.keys() == wanted.keys() and found["test_accuracy"] == wanted["test_accuracy"]
        assert (found["replicas"], wanted["replicas"]) == (3, 1)
        assert "replicas  3 networks in this process, in turns" in log(tmp_path, seed)
        assert (
            log(tmp_path, seed).count(f"seed {seed}\n") == 1
            and "test accuracy" in log(tmp_path, seed).splitlines()[-1]
        )
    before = contents(tmp_path / "s1")
    assert main(words(tmp_path, *whole[0])) == 0
    assert contents(tmp_path / "s1")["checkpoint.safetensors"] == before["checkpoint.safetensors"]


@pytest.mark.parametrize("step", [0, 4])
def test_a_signal_stops_all_and_they_go_on(whole, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patched:
        at_call(patched, TrainingStep, "__call__", step, lambda: signal.raise_signal(signal.SIGTERM))
        assert main(words(tmp_path, *whole[0])) == 143
    positions = [checkpoint(tmp_path / f"s{seed}")[1]["position"] for seed in SEEDS]
    taken = sum(position["epoch"] * STEPS + position["step"] for position in positions)
    # one that has not begun its epoch takes a step of it, to have something to save
    assert taken == max(step + 1, 3)
    assert all("continue with --resume" in log(tmp_path, seed).splitlines()[-1] for seed in SEEDS)
    assert main(words(tmp_path, *whole[0])) == 0
    assert_same_runs(tmp_path, whole)


def test_begun_alone_continued_beside_others_and_alone_again(whole, tmp_path, monkeypatch):
    def stopped_at(number):
        patched = monkeypatch.context()
        at_call(
            patched.__enter__(), TrainingStep, "__call__", number, lambda: signal.raise_signal(signal.SIGTERM)
        )
        return patched

    patched = stopped_at(3)
    assert alone(tmp_path / "s1", "--seed", "1", *whole[0], epochs=EPOCHS) == 143
    patched.__exit__(None, None, None)
    assert checkpoint(tmp_path / "s1")[1]["position"]["epoch"] == 1
    patched = stopped_at(3)
    assert main(words(tmp_path, *whole[0])) == 143
    patched.__exit__(None, None, None)
    for seed in (1, 2):  # one begun alone, one begun beside it
        assert alone(tmp_path / f"s{seed}", "--resume", "--seed", str(seed), *whole[0], epochs=EPOCHS) == 0
        assert_same_run(tmp_path / f"s{seed}", whole[1] / f"s{seed}")


def test_one_that_fails_fails_alone(whole, tmp_path):
    """It fails by its learning rate, or by its folder, before it has begun and while it trains."""
    rates = {"s1": ["--lr", "1e30"]}
    assert main(words(tmp_path / "a", *whole[0], **rates)) == 3
    assert (
        "fastbn: diverged: the loss" in (said := log(tmp_path / "a", 1))
        and "; no checkpoint was saved" in said
        and not (tmp_path / "a" / "s1" / "summary.json").exists()
    )
    held = RunFolder(tmp_path / "b" / "s2")
    assert main(words(tmp_path / "b", *whole[0])) == 2
    held.close()
    assert "in use by another run" in log(tmp_path / "b", 2)
    for folder, seeds in ((tmp_path / "a", (0, 2)), (tmp_path / "b", (0, 1))):
        for seed in seeds:
            assert_same_run(folder / f"s{seed}", whole[1] / f"s{seed}")


def test_a_full_disk_of_one(whole, tmp_path, monkeypatch):
    original = RunFolder.add_metrics

    def full(self, line):
        if self.path.name == "s0" and line["epoch"] == 1:
            raise MachineError("no space left")
        original(self, line)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "add_metrics", full)
        assert main(words(tmp_path, *whole[0])) == 2
    assert "error: no space left" in log(tmp_path, 0) and len(metrics(tmp_path / "s0")) == 1
    for seed in (1, 2):
        assert_same_run(tmp_path / f"s{seed}", whole[1] / f"s{seed}")


def test_nothing_to_train(tmp_path):
    assert main(words(tmp_path, "--train", "none")) == 0
    assert alone(tmp_path / "alone", "--train", "none", "--seed", "2", epochs=EPOCHS) == 0
    assert metrics(tmp_path / "s2")[0]["test_accuracy"] == metrics(tmp_path / "alone")[0]["test_accuracy"]


@pytest.mark.parametrize(
    "own, said",
    [
        ({"s1": ["--width", "5"]}, "--seed, --lr and --weights alone"),
        (
            {"s0": ["--batch-size", "auto"], "s1": ["--batch-size", "auto"], "s2": ["--batch-size", "auto"]},
            "--batch-size auto is for",
        ),
        ({"s1": ["--bogus"]}, "--bogus"),
    ],
)
def test_what_cannot_be(tmp_path, capfd, own, said):
    assert main(words(tmp_path, **own)) == 2
    assert said in capfd.readouterr().err and not list(tmp_path.iterdir())


def test_a_data_set_that_is_not_there_fails_all(tmp_path):
    assert main(words(tmp_path, "--dataset", "cifar10", "--data-dir", str(tmp_path / "nowhere"))) == 2
    assert all("CIFAR-10 is not in" in log(tmp_path, seed) for seed in SEEDS)


def test_seeds_of_a_line_are_begun_together(tmp_path, monkeypatch, capfd):
    begun = []

    class Group(Pretended):
        def __init__(self, group, codes):
            self.group = [Pretended(job, 1, code) for job, code in zip(group, codes, strict=True)]
            self.returncode = None

        def poll(self):
            found = [one.poll() for one in self.group]
            self.returncode = None if None in found else max(found)
            return self.returncode

    def begin(group, place):
        begun.append(([(job.line.name, job.seed) for job in group], place))
        return Group(group, [3 if (job.line.name, job.seed) == ("bn", 1) else 0 for job in group])

    monkeypatch.setattr(launch, "_launch", begin)
    monkeypatch.setattr(launch, "_last_line", lambda job: "the loss stopped being finite")
    found = jobs(PRESETS["bn-then-all"], tmp_path, True, seeds=3, more=["--epochs", "1"])
    assert launch.run(found, ["0", "5"], 2) == 2
    bn, everything, after = ("bn", "all", "bn, then all")
    assert begun[:2] == [([(bn, 0), (bn, 1)], "0"), ([(everything, 0), (everything, 1)], "5")]
    assert sorted(group for group, _ in begun[2:]) == [
        [(everything, 2)],
        [(bn, 2)],
        [(after, 0)],
        [(after, 2)],
    ]
    assert "4 at a time" in capfd.readouterr().err
    assert {outcome(job).state for job in found if job.seed != 1} == {"done"}
    begun.clear()
    assert launch.run(found, [None], 3) == 2 and begun == [([(bn, 1)], None)]


def test_shards_keep_replicas_together(tmp_path):
    for name in ("paper-depth", "bn-then-all"):
        whole = jobs(PRESETS[name], tmp_path)
        parts = [shard(whole, i, 3, 3) for i in range(3)]
        assert sorted(job.out for part in parts for job in part) == sorted(job.out for job in whole)
        for part in parts:
            lines = [job.line.name for job in part]
            assert all(
                lines.count(job.line.name) == 3 and (job.line.after or job.line.name) in lines for job in part
            )


def process(folder, *more):
    return start(*words(folder, "--threads", "1", *more, epochs=40), module="fastbn.experiments.replicas")


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=["SIGTERM", "SIGKILL"]
)
def test_a_process_that_is_ended_while_it_trains(tmp_path, number, code):
    replicas, deadline = process(tmp_path), time.monotonic() + 120
    while (
        not ((tmp_path / "s2" / "metrics.jsonl").exists() and len(metrics(tmp_path / "s2")) > 2)
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    replicas.send_signal(number)
    assert replicas.communicate(timeout=60) == ("", "") and replicas.returncode == code
    assert all(3 <= len(metrics(tmp_path / f"s{seed}")) < 40 for seed in (1, 2))
    again = process(tmp_path)
    assert again.communicate(timeout=300) == ("", "") and again.returncode == 0
    assert alone(tmp_path / "alone", "--seed", "1", epochs=40) == 0
    assert_same_run(tmp_path / "s1", tmp_path / "alone")


@pytest.mark.slow
def test_an_experiment_by_replicas(tmp_path, monkeypatch, capfd):
    """Three seeds of two lines in two processes; one of a line that diverges is told in the table."""
    from fastbn.experiments.__main__ import main as experiments

    tiny = {
        "depth": 8,
        "width": 4,
        "dataset": "digits",
        "limit_train": 48,
        "limit_test": 16,
        "epochs": 1,
        "batch_size": 24,
    }
    lines = (Line("bn", tiny), Line("wild", {**tiny, "lr": 1e30}))
    monkeypatch.setitem(PRESETS, "paper-width", dataclasses.replace(PRESETS["paper-width"], lines=lines))
    assert experiments(["run", "paper-width", "--seeds", "3", "--replicas", "3", "--out", str(tmp_path)]) == 1
    said = capfd.readouterr()
    assert (
        "3 of 3 |" in said.out
        and "| failed: diverged: the loss" in said.out
        and said.err.count("begins") == 6
    )
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("paper-width/bn-s*/summary.json")]
    assert [summary["replicas"] for summary in summaries] == [3, 3, 3]
    assert experiments(["run", "paper-width", "--seeds", "3", "--replicas", "0", "--out", str(tmp_path)]) == 2
