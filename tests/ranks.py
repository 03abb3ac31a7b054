"""Real processes that train together over gloo: this module's functions run in each, and torchrun's
command line."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp
from runs import REPOSITORY

LONGEST = 240  # seconds, on a busy machine


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _rank(rank, count, port, folder, act, arguments, named):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    result = act(*arguments, **named)
    (Path(folder) / f"rank{rank}.pickle").write_bytes(pickle.dumps(result))


def together(count, folder, act, *arguments, **named):
    """Return what act(*arguments, **named), a function of a module, returns in each of `count` processes."""
    folder.mkdir(parents=True, exist_ok=True)
    context = mp.spawn(_rank, (count, free_port(), str(folder), act, arguments, named), count, join=False)
    deadline = time.monotonic() + LONGEST
    while not context.join(1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{count} ranks did not end in {LONGEST} s")
    return [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in range(count)]


def torchrun(count, *arguments, restarts=0):
    """Return a process of torchrun's that trains by `count` ranks, one thread each."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={count}",
        f"--max-restarts={restarts}",
    ]
    return subprocess.Popen(
        [*command, "-m", "fastbn.train", *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid):
    """Return its rank processes, by rank."""
    pids = [
        int(word)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for word in path.read_text().split()
    ]
    found = {}
    for child in pids:
        try:
            told = (Path(f"/proc/{child}/environ")).read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(line[5:]) for line in told if line.startswith(b"RANK=")]
        if ranks:
            found[ranks[0]] = child
    return found


def start(count, *arguments, folders=None):
    """Return the processes of `count` ranks, as torchrun would start them, each in the repository or in a
    folder of its own."""
    port, found = free_port(), []
    for rank in range(count):
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
            "OMP_NUM_THREADS": "1"
        }
        own = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        found.append(
            subprocess.Popen(
                [sys.executable, "-m", "fastbn.train", *map(str, arguments)],
                cwd=folders[rank] if folders else REPOSITORY,
                env=environment
                | {name: str(value) for name, value in own.items()}
                | {"PYTHONPATH": str(REPOSITORY)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return found


def ended(processes, seconds=300):
    """[(exit code, stdout, stderr)] of each, once all have ended."""
    try:
        said = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *words) for process, words in zip(processes, said, strict=True)]


def wait_for(condition, *processes, seconds=180):
    """Wait until it holds; fail where a process ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        for process in processes:
            assert process.poll() is None, process.communicate(timeout=60)
        time.sleep(0.005)
