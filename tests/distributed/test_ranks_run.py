"""Runs of several ranks: who writes and speaks, how they end together, and what a restart makes of a rank
that was killed."""

import json
import os
import signal
import sys

import pytest
from ranks import children, ended, start, together, torchrun, wait_for
from runs import TINY, assert_same_run, checkpoint, metrics, train

from fastbn.train import main

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_THREAD = ["--threads", "1"]


def run(out, *arguments):
    """Return the exit code of a tiny run as this rank, and the files that it opened for writing or
    renamed."""
    written = []

    def listen(event, given):
        if event == "open" and isinstance(given[1], str) and set(given[1]) & set("wa+x"):
            written.append(str(given[0]))
        elif event == "os.rename":
            written.append(str(given[1]))

    sys.addaudithook(listen)
    code = main([*TINY, *ONE_THREAD, "--epochs", "2", "--out", str(out), *arguments])
    return code, [os.path.basename(path) for path in written if path.startswith(str(out))]


@pytest.mark.slow
def test_the_first_rank_alone_writes_and_speaks(tmp_path, capfd):
    out = tmp_path / "run"
    (code, written), (other, nothing) = together(2, tmp_path, run, out)
    assert code == other == 0
    assert nothing == []
    files = {"lock", "config.json", "metrics.jsonl", "checkpoint.safetensors", "summary.json"}
    assert {name.removesuffix(".part") for name in written} == files == {path.name for path in out.iterdir()}
    assert written.count("config.json") == written.count("summary.json") == 1
    assert written.count("checkpoint.safetensors") == 2  # epochs
    said, err = capfd.readouterr()
    assert len(said.splitlines()) == 1 and "test accuracy" in said
    words = ["device", "engine", "ranks", "data", "network", "recipe", "plan", "epoch", "epoch"]
    assert [line.split()[0] for line in err.splitlines()] == words
    assert (
        "2, 12 images of each batch a rank, BatchNorm's statistics each rank's own, 688 bytes an all-reduce "
        "over gloo"
    ) in err
    assert (
        json.loads((out / "config.json").read_text())["ranks"]
        == json.loads((out / "summary.json").read_text())["ranks"]
        == 2
    )
    assert [line["epoch"] for line in metrics(out)] == [0, 1]


def one_line(text):
    lines = [line for line in text.splitlines() if not line.startswith("[")]  # but for what gloo's C++ says
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--batch-size", "23"], "not divisible by 2 ranks; give 22 or 24"),
        (["--limit-train", "1"], "fewer than the 2 ranks"),
        (["--depth", "15"], "depth must be"),
        (["--sync-bn", "--engine", "stock"], "--sync-bn is the reference and the native engine's"),
        (["--what"], "unrecognized arguments"),
    ],
)
def test_a_wrong_argument_is_told_once(tmp_path, arguments, message):
    (code, said, err), (other, silent, quiet) = ended(
        start(2, *TINY, *ONE_THREAD, "--epochs", 1, "--out", tmp_path / "run", *arguments)
    )
    assert code == other == 2 and said == silent == ""
    assert message in (one_line(err.splitlines()[-1]) if "recipe" in err else one_line(err))
    assert "fastbn" not in quiet and "Traceback" not in quiet


@pytest.mark.slow
def test_what_one_rank_lacks_ends_all(tmp_path):
    """The weights' file is there for the first of them only."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    from runs import network
    from safetensors.torch import save_file

    save_file(
        {name: t for name, t in network(engine="stock").state_dict().items() if t.dim()},
        str(folders[0] / "weights.safetensors"),
    )
    arguments = [
        *TINY,
        *ONE_THREAD,
        "--epochs",
        1,
        "--out",
        tmp_path / "run",
        "--weights",
        "weights.safetensors",
    ]
    (code, _, err), (other, _, quiet) = ended(start(2, *arguments, folders=folders))
    assert code == other == 2
    assert "error: rank 1:" in one_line(err) and "weights.safetensors" in err
    assert "fastbn" not in quiet


@pytest.mark.slow
def test_divergence_ends_all(tmp_path):
    (code, _, err), (other, _, quiet) = ended(
        start(2, *TINY, *ONE_THREAD, "--epochs", 4, "--lr", 1e30, "--out", tmp_path / "run")
    )
    assert code == other == 3
    assert "diverged" in err and "fastbn" not in quiet


def lines(out):
    return (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_signal_to_one_rank_stops_all_after_saving(tmp_path, number, code):
    out, epochs = tmp_path / "run", 300
    ranks = start(2, *TINY, *ONE_THREAD, "--epochs", epochs, "--resume", "--out", out)
    wait_for(lambda: lines(out) >= 3, *ranks)
    ranks[1].send_signal(number)
    found = ended(ranks)
    assert [each[0] for each in found] == [code, code], found
    assert "continue with --resume" in found[0][2] and "fastbn" not in found[1][2]
    position = checkpoint(out)[1]["position"]
    assert position["epoch"] == lines(out) < epochs
    assert [each[0] for each in ended(start(2, "--resume", "--out", out, "--epochs", lines(out) + 2))] == [
        0,
        0,
    ]
    assert [line["epoch"] for line in metrics(out)] == list(range(lines(out)))


@pytest.mark.slow
def test_a_rank_that_hangs_is_told_of(tmp_path):
    out = tmp_path / "run"
    ranks = start(2, *TINY, *ONE_THREAD, "--epochs", 10_000, "--rank-timeout", 4, "--out", out)
    wait_for(lambda: lines(out) >= 2, *ranks)
    ranks[1].send_signal(signal.SIGSTOP)
    _, err = ranks[0].communicate(timeout=60)
    ranks[1].kill()
    ranks[1].communicate(timeout=60)
    assert ranks[0].returncode == 2 and "Traceback" not in err
    assert (
        "rank 0 of 2 waited 4 s in an all-reduce for the others: a rank hangs, or takes longer than "
        "--rank-timeout 4"
    ) in err


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others(tmp_path):
    out = tmp_path / "run"
    ranks = start(4, *TINY, *ONE_THREAD, "--epochs", 10_000, "--out", out)
    wait_for(lambda: lines(out) >= 2, *ranks)
    ranks[0].kill()
    found = ended(ranks)
    assert [each[0] for each in found] == [-9, 2, 2, 2]
    assert all(
        "lost the others in an all-reduce" in each[2] and "--resume" in each[2] and "Traceback" not in each[2]
        for each in found[1:]
    )


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_is_started_again_and_nothing_is_lost(tmp_path, victim):
    """kill -9 in mid-epoch under torchrun: it starts all ranks anew, these resume, and end as if nothing
    had happened."""
    out, epochs = tmp_path / "run", 60
    arguments = [*TINY, *ONE_THREAD, "--epochs", epochs]
    running = torchrun(2, *arguments, "--resume", "--out", out, restarts=2)
    wait_for(lambda: lines(out) >= 3, running)
    os.kill(children(running.pid)[victim], signal.SIGKILL)
    ((code, said, err),) = ended([running], 300)
    assert code == 0, err
    assert "resuming" in err and len(said.splitlines()) == 1
    whole = tmp_path / "whole"
    assert [each[0] for each in ended(start(2, *arguments, "--out", whole))] == [0, 0]
    assert_same_run(out, whole)


@pytest.mark.slow
def test_torchrun_that_is_asked_to_stop_saves(tmp_path):
    """It is so at the end of a Slurm job's time: the signal goes to torchrun, which hands it on."""
    out, arguments = tmp_path / "run", [*TINY, *ONE_THREAD, "--resume", "--out", tmp_path / "run"]
    running = torchrun(2, *arguments, "--epochs", 10_000, restarts=2)
    wait_for(lambda: lines(out) >= 3, running)
    running.send_signal(signal.SIGTERM)
    ((code, said, err),) = ended([running])
    assert code != 0 and said == "" and "stopped by signal 15; continue with --resume" in err
    position, epochs = checkpoint(out)[1]["position"], lines(out)
    assert position["epoch"] == epochs < 10_000
    assert [
        each[0]
        for each in ended(start(2, *arguments, "--epochs", epochs + 1, "--milestones", *_milestones(out)))
    ] == [0, 0]
    assert lines(out) == epochs + 1


def _milestones(out):
    return [",".join(map(str, json.loads((out / "config.json").read_text())["milestones"]))]


@pytest.mark.slow
def test_another_number_of_ranks_may_go_on(tmp_path, capfd):
    out, whole = tmp_path / "run", tmp_path / "whole"
    arguments = [*TINY, *ONE_THREAD, "--sync-bn", "--out", out]
    assert [each[0] for each in ended(start(4, *arguments, "--epochs", 1, "--milestones", 1))] == [0] * 4
    assert main([*map(str, arguments), "--epochs", "2", "--milestones", "1", "--resume"]) == 0
    assert train(whole, "--milestones", "1", "--threads", "1") == 0
    # in float32 a rounding flips a ReLU here and there
    for line, other in zip(metrics(out), metrics(whole), strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=0.01)
    capfd.readouterr()
    assert main([*TINY, *ONE_THREAD, "--out", str(tmp_path / "own"), "--epochs", "1"]) == 0
    found = ended(start(2, "--resume", "--out", tmp_path / "own", "--epochs", 2))
    assert "saved by 1 ranks and continued by 2: BatchNorm's statistics are now of 12 images" in found[0][2]
