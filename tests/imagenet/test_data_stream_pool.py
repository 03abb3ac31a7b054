"""The processes that decode: they import no torch, end with their parent however it dies, and say in one
line what ended them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_stream import content, folders

from fastbn.data.imagenet import read_imagenet
from fastbn.data.imagenet.crops import CentreCrop
from fastbn.data.imagenet.pool import Crew, Pool, cores
from fastbn.data.imagenet.source import Location
from fastbn.data.imagenet.worker import Decode, Members
from fastbn.errors import MachineError

ROOT = Path(__file__).resolve().parents[2]


def task(path, n=3):
    return Decode(0, [(k, Location(str(path), 0, -1)) for k in range(n)], CentreCrop(8), 8, [])


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def gone(pids, seconds=120.0):
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(alive, pids))


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "a.jpg").write_bytes(content(1))
    return tmp_path / "a.jpg"


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_to_their_tasks(picture, workers):
    pool = Pool(workers, 2, 10_000)
    jobs = [pool.submit(task(picture, n)) for n in (1, 2, 3, 4, 5, 6, 7)]
    first = pool.submit(task("nowhere", 1), first=True)
    assert pool.result(first) == ["FileNotFoundError: [Errno 2] No such file or directory: 'nowhere'"]
    for n, job in reversed(list(enumerate(jobs, 1))):
        rows = pool.result(job)
        assert (
            len(rows) == n
            and rows[0].start == 0
            and rows[-1].start == (n - 1) * 3 * rows[0].height * rows[0].width
        )
    assert pool.memory[: 3 * rows[0].height * rows[0].width].any()
    pool.close()


def test_a_worker_imports_no_torch():
    code = "import sys, fastbn.data.imagenet.worker; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_a_pool_that_is_closed_or_forgotten_leaves_no_process(picture):
    for end in (lambda pool: pool.close(), lambda pool: None):
        pool = Pool(2, 2, 10_000)
        pids = [worker.process.pid for worker in pool._workers]
        pool.result(pool.submit(task(picture)))
        assert all(map(alive, pids))
        pool.submit(task(picture))
        end(pool)
        del pool
        assert gone(pids)


def test_a_worker_that_is_killed_is_one_line(picture):
    pool = Pool(2, 2, 10_000)
    pool.result(pool.submit(task(picture)))
    pids = [worker.process.pid for worker in pool._workers]
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(
        MachineError, match=r"ended \(killed by signal 9\); where memory is short, ask for fewer workers"
    ):
        for job in [pool.submit(task(picture)) for _ in range(4)]:
            pool.result(job)
    assert gone(pids)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_task_that_fails_is_one_line(picture, workers):
    pool = Pool(workers, 1, 50)  # a slot that is too small
    with pytest.raises(MachineError, match=r"^a process that reads images failed \(ValueError: [^\n]*\)$"):
        pool.result(pool.submit(task(picture)))
    pool.close()


def test_processes_that_cannot_be_started_are_one_line(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(MachineError, match="cannot start 2 processes to decode images"):
        Pool(2, 2, 100)


def test_a_crew_keeps_its_pools():
    crew = Crew(0, 100)
    one, two = crew.take(), crew.take()
    assert one is not two
    crew.put_back(two)
    assert crew.take() is two


def test_cores_are_shared_among_local_ranks(monkeypatch):
    mine = len(os.sched_getaffinity(0))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert cores() == mine
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cores() == max(1, mine // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert cores() == 1


def children(pid):
    """Return the processes whose parent this is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


READY = """
import sys
from fastbn.data.imagenet import read_imagenet
stream, _ = read_imagenet(sys.argv[1], 16, workers=2)
stream.begin(0, 0)
batches = stream.batches(4)
next(batches)
print("ready", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "then"),
    [
        (signal.SIGKILL, "sys.stdin.read()"),
        (signal.SIGINT, "sys.stdin.read()"),
        (None, "sys.stdin.read(); sys.exit(3)"),
    ],
)
def test_however_the_parent_ends_its_workers_do(tmp_path, number, then):
    """Killed, interrupted from the terminal as a whole group, or left in the middle of an epoch."""
    folders(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", READY + then, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    pids = children(process.pid)
    assert len(pids) == 2 and all(map(alive, pids))
    if number is not None:
        os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)  # which closes its stdin
    assert gone(pids)
    assert err.count("Traceback") == (number == signal.SIGINT)  # the script's own, which handles no Ctrl-C
    assert process.returncode == (3 if number is None else -number)


@pytest.mark.slow
def test_a_script_without_a_main_guard_streams(tmp_path):
    folders(tmp_path / "data", 9, 4)
    (tmp_path / "script.py").write_text(READY)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "data")]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")


def test_members_are_read_by_a_worker_too(tmp_path):
    pool = Pool(1, 1, 100)
    found, wrong = pool.result(pool.submit(Members(str(tmp_path / "nowhere.tar"))))
    assert found == [] and wrong.startswith("FileNotFoundError")
    pool.close()


def test_a_stream_in_the_middle_of_an_epoch_names_what_ended_it(tmp_path):
    stream, _ = read_imagenet(folders(tmp_path), 16, workers=1)
    stream.begin(0, 0)
    batches = stream.batches(4)
    next(batches)
    for pid in children(os.getpid()):
        if b"fastbn.data.imagenet.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    with pytest.raises(MachineError, match="killed by signal 9"):
        list(batches)
