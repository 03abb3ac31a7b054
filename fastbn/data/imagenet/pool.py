"""Worker processes and the memory that they share with this one."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import weakref
from collections import deque
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from fastbn.data.imagenet.worker import Failed, perform
from fastbn.errors import MachineError

AT_ONCE = 2  # tasks a worker has: one in work, one to go on with
TIMEOUT = 300.0  # seconds without an answer from any worker, as long as ranks wait for one another
LONGEST = 1e6  # seconds: what the system can wait
ENDING = 5.0  # seconds that a killed process may take to end: one that waits for a lost disk does not
PROGRAM = "import sys; from fastbn.data.imagenet.worker import main; main(int(sys.argv[1]), int(sys.argv[2]))"


class DecodeJob:
    """A task that was handed in, and its result once it is done."""

    def __init__(self, task: Any):
        self.task, self.result, self.done = task, None, False


class Worker:
    """A process, the socket to it, and its jobs in the order in which it will answer."""

    def __init__(self, shared: int, timeout: float):
        self.jobs: deque[DecodeJob] = deque()
        self.socket, theirs = multiprocessing.Pipe()
        # a message that stops half-way is waited for as long
        with socket.socket(fileno=os.dup(self.socket.fileno())) as same:
            for limit in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                same.setsockopt(
                    socket.SOL_SOCKET, limit, struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
                )
        # it imports what this process would
        search = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno()), str(shared)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), shared),
                env=os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                # Ctrl-C is the parent's: it would interrupt a worker in the middle of its start
                start_new_session=True,
            )


class Pool:
    """`workers` processes, and `slots` stretches of `slot_bytes` of memory that they write into; with none,
    tasks are done here.

    Free slots are kept by number. Raises MachineError where a process can't be started, ends before its time,
    or where a result is waited for and none has answered for `timeout` seconds.
    """

    def __init__(self, workers: int, slots: int, slot_bytes: int, timeout: float = TIMEOUT):
        self.slot_bytes, self.free = slot_bytes, deque(range(slots))
        self.timeout = min(max(timeout, 1e-3), LONGEST)
        shared = os.memfd_create("fastbn")
        try:
            os.ftruncate(shared, slots * slot_bytes)  # pages count once they are written
            self.memory = np.frombuffer(mmap.mmap(shared, 0), np.uint8)
            self._workers: list[Worker] = []
            self.close = weakref.finalize(self, _close, self._workers)
            self._workers.extend(Worker(shared, self.timeout) for _ in range(workers))
        except OSError as error:
            raise MachineError(
                f"cannot start {workers} processes to decode images ({error}); ask for fewer workers"
            ) from None
        finally:
            os.close(shared)
        self._waiting: deque[DecodeJob] = deque()

    def submit(self, task: Any, first: bool = False) -> DecodeJob:
        """Hand a task in, behind the others or before them. It is pickled: fastbn.data.imagenet.worker has
        what is known there."""
        job = DecodeJob(task)
        self._waiting.insert(0 if first else len(self._waiting), job)
        self._send()
        return job

    def result(self, job: DecodeJob) -> Any:
        """Return a job's result, waited for."""
        while not job.done:
            if not self._workers:
                job.result, job.done = perform(job.task, self.memory), True
                self._waiting.remove(job)
                break
            busy = {worker.socket: worker for worker in self._workers if worker.jobs}
            # a machine that was frozen for longer than that has the second half to wake up in
            half = self.timeout / 2
            ready = wait(list(busy), half) or wait(list(busy), half)
            if not ready:
                raise self._silent(next(iter(busy.values())))
            for connection in ready:
                assert isinstance(connection, Connection)
                self._receive(busy[connection])
            self._send()
        if isinstance(job.result, Failed):
            raise MachineError(f"a process that reads images failed ({job.result.reason})")
        return job.result

    def _send(self) -> None:
        while self._waiting and self._workers:
            worker = min(self._workers, key=lambda worker: len(worker.jobs))
            if len(worker.jobs) == AT_ONCE:
                return
            worker.jobs.append(self._waiting.popleft())
            try:
                worker.socket.send(worker.jobs[-1].task)
            except BlockingIOError:
                raise self._silent(worker) from None
            except OSError:
                raise self._ended(worker) from None

    def _receive(self, worker: Worker) -> None:
        try:
            result = worker.socket.recv()
        except BlockingIOError:
            raise self._silent(worker) from None
        except (EOFError, OSError):
            raise self._ended(worker) from None
        job = worker.jobs.popleft()
        job.result, job.done = result, True

    def _silent(self, worker: Worker) -> MachineError:
        """Return what is said of a worker that does not answer; all are killed."""
        self.close()
        waited = (
            f"a process that reads images (process {worker.process.pid}) has not answered for "
            f"{self.timeout:g} s"
        )
        return MachineError(
            f"{waited}: it was stopped, or a disk does not deliver; look at the disk, or raise --rank-timeout"
        )

    def _ended(self, worker: Worker) -> MachineError:
        """Return what is said of a worker that ended; the others end too."""
        code = worker.process.wait()
        self.close()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return MachineError(
            f"a process that reads images ended ({how}); where memory is short, ask for fewer workers"
        )


def _close(workers: list[Worker]) -> None:
    """End the processes, in the middle of what they do."""
    for worker in workers:
        worker.socket.close()
        worker.process.kill()
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(ENDING)


class Crew:
    """Pools kept between an epoch and the next: starting Python takes a while, a process at rest nothing."""

    def __init__(self, workers: int, slot_bytes: int, timeout: float = TIMEOUT):
        self.workers, self._slot_bytes, self.timeout, self._resting = (
            workers,
            slot_bytes,
            timeout,
            list[Pool](),
        )

    def take(self) -> Pool:
        """Return a pool of one's own, with nothing in work."""
        if self._resting:
            return self._resting.pop()
        return Pool(self.workers, max(2, 4 * self.workers), self._slot_bytes, self.timeout)

    def put_back(self, pool: Pool) -> None:
        """Put a pool back, to be taken again. A pool with something in work is closed instead."""
        self._resting.append(pool)


def cores() -> int:
    """Return the cores that this process may use, shared among the processes that a launcher started on this
    machine."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, len(os.sched_getaffinity(0)) // max(1, int(ranks) if ranks.isdecimal() else 1))
