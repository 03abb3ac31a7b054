"""Experiments as they are launched: side by side, in shards, on GPUs, stopped, killed and taken up again."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from runs import REPOSITORY
from small_experiments import Pretended

from fastbn.experiments import launch
from fastbn.experiments.__main__ import main
from fastbn.experiments.preset import Line, jobs, shard
from fastbn.experiments.presets import PRESETS
from fastbn.experiments.results import outcome

pytestmark = pytest.mark.usefixtures("one_thread")


def test_runs_lie_side_by_side_and_wait_for_what_they_start_from(tmp_path, monkeypatch, capfd):
    begun = []

    def begin(group, place):
        (job,) = group
        begun.append((job.line.name, job.seed, place))
        return Pretended(
            job, 3 if job.line.name == "bn" else 8, 3 if job.seed and job.line.name == "bn" else 0
        )

    monkeypatch.setattr(launch, "_launch", begin)
    monkeypatch.setattr(launch, "_last_line", lambda job: "the loss stopped being finite")
    found = jobs(PRESETS["bn-then-all"], tmp_path, True, seeds=2, more=["--epochs", "1"])
    assert launch.run(found, ["0", "5"]) == 2
    order = [(name, seed) for name, seed, _ in begun]
    assert order[:2] == [("bn", 0), ("all", 0)] and [place for _, _, place in begun[:2]] == ["0", "5"]
    assert order.index(("bn, then all", 0)) > order.index(("bn", 0)) and ("bn, then all", 1) not in order
    assert {outcome(job).state for job in found if job.seed == 0} == {"done"}
    failed = {
        job.line.name: outcome(job).error for job in found if job.seed == 1 and outcome(job).state == "failed"
    }
    assert failed["bn"] == "the loss stopped being finite" and failed["bn, then all"].startswith(
        "the run that it starts from failed"
    )
    begun.clear()
    assert launch.run([job for job in found if job.seed == 0], [None]) == 0 and begun == []
    assert "3 of 3 runs done before" in capfd.readouterr().err


@pytest.mark.parametrize("name, n", [("paper-depth", 5), ("bn-then-all", 4), ("wandb-all-frozen", 7)])
def test_shards_are_the_whole_and_keep_chains_together(name, n, tmp_path):
    whole = jobs(PRESETS[name], tmp_path)
    parts = [shard(whole, i, n) for i in range(n)]
    assert sorted(job.out for part in parts for job in part) == sorted(job.out for job in whole)
    for part in parts:
        lines = {(job.line.name, job.seed) for job in part}
        assert all(job.line.after is None or (job.line.after, job.seed) in lines for job in part)
    assert max(map(len, parts)) - min(map(len, parts)) <= (1 if name != "bn-then-all" else 3)


def test_the_gpus_that_may_be_used(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 1")
    assert launch.devices() == ["3", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch.devices() == [None]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 2)))
    assert launch.devices() == ["0", "1"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["show", "paper-dept"], ["paper-dept", "nearest: paper-depth"]),
        (["run", "wandb"], ["preset must be one of", "'wandb'"]),
        (["table", "paper-depth", "--seeds", "0"], ["--seeds", "0"]),
        (["run", "paper-depth", "--quick", "--", "--train", "bm"], ["train", "'bm'"]),
        (["run", "paper-depth", "--quick", "--", "--bogus"], ["--bogus"]),
        (["run", "paper-depth", "--shard", "3/3"], ["--shard", "3/3"]),
        (["run", "paper-depth", "--shard", "one"], ["--shard", "one"]),
        (["make", "paper-depth"], ["make"]),
        ([], ["list|show|run|table"]),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capfd, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and all(text in err for text in said), err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_line_that_cannot_run_fails_alone(tmp_path, monkeypatch, capfd):
    """The others go on; the table says why; the exit code too."""
    preset = dataclasses.replace(
        PRESETS["wandb-all-frozen"],
        lines=(Line("none", {"depth": 8, "train": "none", "dataset": "cifar10"}),),
    )
    monkeypatch.setitem(PRESETS, "wandb-all-frozen", preset)
    assert (
        main(
            [
                "run",
                "wandb-all-frozen",
                "--seeds",
                "1",
                "--data-dir",
                str(tmp_path / "nowhere"),
                "--out",
                str(tmp_path / "e"),
            ]
        )
        == 1
    )
    said = capfd.readouterr()
    assert "| failed: CIFAR-10 is not in" in said.out
    assert (tmp_path / "e" / "wandb-all-frozen" / "table.md").read_text() == said.out


def command(out, *more):
    words = [
        "run",
        "bn-then-all",
        "--quick",
        "--out",
        str(out),
        "--",
        "--dataset",
        "digits",
        "--device",
        "cpu",
        *more,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
        "OMP_NUM_THREADS": "1"
    }
    return subprocess.Popen(
        [sys.executable, "-m", "fastbn.experiments", *words],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_stopped_killed_and_taken_up_again(tmp_path):
    """SIGTERM saves; kill -9 of it all loses what was not saved; the same command ends it; once more does
    nothing."""
    more = ["--epochs", "3", "--limit-train", "400", "--limit-test", "50", "--width", "4"]
    folder = tmp_path / "bn-then-all-quick"

    def wait_for(path):
        until = time.monotonic() + 300
        while not (path.exists() and path.stat().st_size) and time.monotonic() < until:
            time.sleep(0.02)
        assert path.exists()

    process = command(tmp_path, *more)
    wait_for(folder / "bn-s0" / "metrics.jsonl")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 143 and "the same command continues" in err and "0 of 3 runs finished" in out

    process = command(tmp_path, *more)
    wait_for(folder / "bn-then-all-s0" / "metrics.jsonl")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    assert (
        outcome(
            jobs(
                PRESETS["bn-then-all"], tmp_path, True, more=["--dataset", "digits", "--device", "cpu", *more]
            )[0]
        ).state
        == "done"
    )

    process = command(tmp_path, *more)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "3 of 3 runs finished" in out and "1 of 3 runs done before" in err, err
    assert "resuming" in (folder / "bn-s0" / "log.txt").read_text()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.jsonl")}
    assert len(before) == 3
    again = command(tmp_path, *more)
    assert (
        again.communicate(timeout=300)[0] == out
        and {path: path.stat().st_mtime_ns for path in before} == before
    )
