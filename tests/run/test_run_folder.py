"""A run's folder beside other people's files: nothing of theirs is written to, and a run that is refused
leaves all as it was."""

import errno
import fcntl
import json
import os
import shutil

import pytest
from runs import TINY, assert_same_run, at_call, checkpoint, metrics, train

from fastbn.errors import MachineError, UsageError
from fastbn.run.folder import RunFolder
from fastbn.train import main
from fastbn.training import checked_file
from fastbn.training.step import TrainingStep

pytestmark = pytest.mark.usefixtures("one_thread")
WRITTEN = ("config.json", "metrics.jsonl", "summary.json", "checkpoint.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert train(out) == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def state(folder):
    """Return every path with its bytes or its link's target, and when it was written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[path.relative_to(folder)] = content, path.lstat().st_mtime_ns
    return found


def refused(code, capfd, *patterns):
    out, err = capfd.readouterr()
    last = err.splitlines()[-1]
    assert (code, out) == (2, "") and "Traceback" not in err, err
    assert last.startswith("fastbn: error: ") and all(pattern in last for pattern in patterns), err


@pytest.mark.parametrize("name", ["lock", "notes.txt", "summary.json", "best.safetensors", ".hidden"])
def test_a_folder_of_somebody_else_s_is_refused_and_left_alone(tmp_path, capfd, name):
    (tmp_path / name).write_text("precious")
    before = state(tmp_path)
    for arguments in ([], ["--resume"]):
        refused(train(tmp_path, *arguments), capfd, name, "--out")
    assert state(tmp_path) == before


def test_logs_and_empty_files_are_in_nobody_s_way(tmp_path):
    for name, content in (
        ("log.txt", "said before\n"),
        ("error.txt", "failed before\n"),
        ("out.log", ""),
        ("lock", ""),
    ):
        (tmp_path / name).write_text(content)
    assert train(tmp_path, epochs=1) == 0
    assert (tmp_path / "log.txt").read_text() == "said before\n"


@pytest.mark.parametrize("what", ["link", "fifo", "device", "folder"])
def test_a_lock_that_is_none(run, tmp_path, capfd, what):
    (tmp_path / "victim").write_text("mine")
    (run / "lock").unlink()
    if what == "fifo":
        os.mkfifo(run / "lock")
    elif what == "folder":
        (run / "lock").mkdir()
    else:
        (run / "lock").symlink_to({"link": tmp_path / "victim", "device": "/dev/null"}[what])
    before = state(run)
    refused(train(run, "--resume", epochs=3), capfd, "cannot write to", "--out")
    assert (tmp_path / "victim").read_text() == "mine" and state(run) == before


def test_nothing_is_written_through_a_link(run, tmp_path):
    """A run's own file may be one, or a temporary may lie there."""
    (tmp_path / "victim").write_text("mine")
    for name in WRITTEN:
        (run / f"{name}.part").symlink_to(tmp_path / "victim")
        moved = (run / name).rename(tmp_path / f"moved-{name}")
        (run / name).symlink_to(moved)
    before = {name: (tmp_path / f"moved-{name}").read_bytes() for name in WRITTEN}
    assert train(run, "--resume", epochs=3) == 0
    assert (tmp_path / "victim").read_text() == "mine"
    assert {name: (tmp_path / f"moved-{name}").read_bytes() for name in WRITTEN} == before
    assert len(metrics(run)) == 3


def test_what_a_kill_left_goes(run, tmp_path, finished):
    left = run / f".fastbn-{'0' * 16}.part"
    left.write_bytes(b"half")
    assert train(run, "--resume") == 0
    assert not left.exists()
    assert_same_run(run, finished)


REFUSED = {
    "another setting": (["--lr", "0.3"], None),
    "another data set": (["--dataset", "cifar10", "--data-dir", "nowhere"], None),
    "another network": (
        [],
        ("checkpoint.safetensors", lambda tensors, header: header["model"].update(width=5)),
    ),
    "shorter state": (
        [],
        ("checkpoint.safetensors", lambda tensors, header: tensors.pop("optimizer.momentum")),
    ),
    "no metrics": ([], ("metrics.jsonl", None)),
    "no checkpoint": ([], ("checkpoint.safetensors", None)),
    "a batch of no size": (["--batch-size", "0"], None),
}


@pytest.mark.parametrize("arguments, alter", REFUSED.values(), ids=REFUSED)
def test_a_resumption_that_is_refused_changes_nothing(run, capfd, arguments, alter):
    if alter is not None and alter[1] is None:
        (run / alter[0]).unlink()
    elif alter is not None:
        tensors, header = checkpoint(run)
        alter[1](tensors, header)
        checked_file.write(run / alter[0], tensors, header)
    before = state(run)
    refused(train(run, "--resume", *arguments, epochs=9), capfd)
    assert state(run) == before


def test_a_checkpoint_that_is_a_link_to_nowhere_is_no_reason_to_start_afresh(run, capfd):
    (run / "checkpoint.safetensors").unlink()
    (run / "checkpoint.safetensors").symlink_to(run / "nowhere")
    before = state(run)
    refused(train(run, "--resume"), capfd, "checkpoint.safetensors")
    assert state(run) == before


def test_a_refused_run_leaves_no_folder(tmp_path, capfd):
    refused(train(tmp_path / "a" / "b", "--limit-train", "64", "--val", "64"), capfd)
    refused(train(tmp_path / "a" / "b", "--dataset", "folder", "--data-dir", str(tmp_path / "none")), capfd)
    assert list(tmp_path.iterdir()) == []


def test_a_module_is_never_named_by_a_file(run, tmp_path, monkeypatch, capfd):
    (tmp_path / "evil.py").write_text(
        "from pathlib import Path\nPath('touched').touch()\ninit = log = finish = lambda *a, **k: 0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = json.loads((run / "config.json").read_text()) | {"track": "evil"}
    (run / "config.json").write_text(json.dumps(config))
    assert main(["--resume", "--out", str(run), "--epochs", "3"]) == 0
    assert not (tmp_path / "touched").exists()
    assert "give --track again" in capfd.readouterr().err
    refused(train(run, "--resume", "--track", ".evil"), capfd, "--track .evil")


def test_metrics_that_go_in_mid_run_are_written_again(tmp_path, finished, monkeypatch):
    out = tmp_path / "run"
    for act in (lambda: (out / "metrics.jsonl").unlink(), lambda: (out / "metrics.jsonl").write_text("")):
        with monkeypatch.context() as patched:
            at_call(patched, TrainingStep, "__call__", 4, act)  # in the second epoch
            assert train(out) == 0
        assert_same_run(out, finished)
        shutil.rmtree(out)


def test_the_checkpoint_is_called_intact_where_it_is(tmp_path, monkeypatch, capfd):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        at_call(patched, TrainingStep, "__call__", 0, lambda: shutil.rmtree(out))
        assert train(out) == 2
    assert capfd.readouterr().err.splitlines()[-1].endswith("no checkpoint was saved")
    assert train(tmp_path / "other") == 0
    folder = RunFolder(tmp_path / "other")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(MachineError, match="No space left on device; the checkpoint is intact"):
        folder.write_json("summary.json", {})
    (tmp_path / "other" / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(MachineError, match="the checkpoint can't be read"):
        folder.write_json("summary.json", {})
    folder.close()


def test_divergence_says_what_is_left(tmp_path, capfd):
    assert train(tmp_path, "--lr", "1e30") == 3
    assert capfd.readouterr().err.splitlines()[-1].endswith("; no checkpoint was saved")


def test_a_lock_that_was_unlinked_keeps_nobody_out(tmp_path, monkeypatch):
    """A run that was refused removes the lock that it made, perhaps after another has opened it: that one
    looks again."""
    lock, calls = tmp_path / "run" / "lock", []
    original = fcntl.flock

    def gone(file, how):
        calls.append(how)
        if len(calls) == 1:
            lock.unlink()
        original(file, how)

    monkeypatch.setattr(fcntl, "flock", gone)
    folder = RunFolder(lock.parent)
    assert len(calls) == 2 and lock.exists()
    with pytest.raises(UsageError, match="in use"):
        RunFolder(lock.parent)
    folder.close()


def test_paths_that_no_run_can_have(tmp_path, capfd):
    for name in ("a" * 300, "bad\udcff", "nul\0"):
        refused(main([*TINY, "--epochs", "1", "--out", str(tmp_path / name)]), capfd)
    assert list(tmp_path.iterdir()) == []
