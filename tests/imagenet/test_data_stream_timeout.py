"""A process that decodes and does not answer: given up by the timeout that ranks have."""

import os
import signal

import data_stream
import pytest

from fastbn.data import datasets
from fastbn.data.imagenet import read_imagenet
from fastbn.data.imagenet.crops import CentreCrop
from fastbn.data.imagenet.pool import Pool
from fastbn.data.imagenet.source import Location
from fastbn.data.imagenet.worker import Decode, Members
from fastbn.errors import MachineError, UsageError
from fastbn.train import main


@pytest.mark.parametrize("answers", [0, 1], ids=["at once", "after an answer"])
def test_a_worker_that_is_stopped_ends_by_the_timeout(tmp_path, answers):
    pool = Pool(1, 1, 10_000, timeout=30.0)
    (tmp_path / "a.png").write_bytes(data_stream.content(6, "PNG"))
    task = Decode(0, [(0, Location(str(tmp_path / "a.png"), 0, -1))], CentreCrop(8), 8, [])
    for _ in range(answers):
        pool.result(pool.submit(task))
    pid = pool._workers[0].process.pid
    os.kill(pid, signal.SIGSTOP)
    pool.timeout = 0.05
    with pytest.raises(
        MachineError,
        match=rf"\(process {pid}\) has not answered for 0.05 s: it was stopped, .*--rank-timeout",
    ):
        pool.result(pool.submit(task))
    assert pool._workers[0].process.poll() == -signal.SIGKILL


def test_a_stopped_worker_that_takes_no_tasks_ends_by_the_timeout(tmp_path):
    """What is sent fills the socket's buffer."""
    pool = Pool(1, 1, 10_000, timeout=0.05)
    os.kill(pool._workers[0].process.pid, signal.SIGSTOP)
    with pytest.raises(MachineError, match=r"has not answered for 0\.05 s"):
        pool.submit(Members("x" * 4_000_000))


def test_the_timeout_is_that_of_the_ranks(tmp_path, monkeypatch, capsys):
    data_stream.folders(tmp_path / "data", 3, 3)
    monkeypatch.setattr(
        datasets,
        "read_imagenet",
        lambda *more, timeout: (_ for _ in ()).throw(UsageError(f"timeout {timeout:g}")),
    )
    arguments = [
        "--depth",
        "18",
        "--dataset",
        "imagenet",
        "--data-dir",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "run"),
    ]
    assert read_imagenet(tmp_path / "data", 16, timeout=7)[0].crew.timeout == 7
    for more, expected in (([], 300), (["--rank-timeout", "7"], 7)):
        assert main([*arguments, *more]) == 2
        assert f"timeout {expected}" in capsys.readouterr().err
