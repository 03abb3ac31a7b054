"""Sixty kills and thirty signals at random moments: the run that goes on equals one that nothing happened to,
bit for bit.

The runs are forks of this process, which has imported all that they need: a moment is then seldom in an
import.
"""

import os
import random
import signal
import time

import pytest
from runs import TINY, assert_same_run, train

from fastbn.train import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

EPOCHS = 12
KINDS = {"sgd": [], "adam, validated": ["--optimizer", "adam", "--lr", "0.01", "--val", "8"]}


def forked(out, *arguments):
    """Return the number of a process that goes on with the run in `out`. A signal waits outside of the run,
    where an interruption would let the process go on with the tests."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid
    code = 99
    try:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            code = main([*TINY, "--epochs", str(EPOCHS), "--out", str(out), "--resume", *arguments])
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    except KeyboardInterrupt:  # before the command has begun, or after its end
        code = 130
    finally:
        os._exit(code)


def lines(out):
    return (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").exists() else 0


def ended_by(number, pid, out):
    """Return the exit code of the process, which a signal was sent to; minus the signal's number where that
    ended it. Every other time one more epoch is waited for, or the run would get nowhere on a slow machine.
    """
    before, done = lines(out), 0
    if random.randrange(2):
        while not done and lines(out) <= before:
            time.sleep(0.002)
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
        time.sleep(random.uniform(0, 0.1))
    else:
        time.sleep(random.uniform(0, 0.6))
    os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("arguments", KINDS.values(), ids=KINDS)
def test_at_random_moments(arguments, tmp_path):
    """The moments differ from run to run, on purpose, and are printed."""
    assert train(tmp_path / "whole", *arguments, epochs=EPOCHS) == 0
    to_come = [signal.SIGKILL] * 30 + [signal.SIGTERM, signal.SIGINT, signal.SIGINT] * 5
    random.shuffle(to_come)
    allowed = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130}}
    runs = hits = 0
    while to_come:
        out = tmp_path / f"run{runs}"
        while True:
            number = to_come[-1] if to_come else None
            pid = forked(out, *arguments)
            code = (
                os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if number is None
                else ended_by(number, pid, out)
            )
            print(f"run {runs}: {number!r} -> {code}, {lines(out)} epochs")
            if code == 0:
                break
            assert number is not None and code in allowed[number]
            to_come.pop()
            hits += 1
        assert_same_run(out, tmp_path / "whole")
        runs += 1
    assert hits == 45 and runs > 1
