"""How commands speak and end: nothing that can't be shown ends a run, and whatever is wrong is one line and
an exit code."""

import errno
import io
import os
import signal
import subprocess
import sys
import time

import pytest
from runs import REPOSITORY, TINY, Dying, assert_same_run, metrics, python, train

from fastbn import analyze, evaluate
from fastbn.cli import command
from fastbn.errors import Diverged, MachineError, Stopped, UsageError
from fastbn.experiments.__main__ import main as experiments
from fastbn.train import main

pytestmark = pytest.mark.usefixtures("one_thread")


class Broken(io.StringIO):
    """A stream that takes a few characters, and fails after."""

    def __init__(self, error, room=0):
        super().__init__()
        self.error, self.room = error, room

    def write(self, text):
        self.room -= len(text)
        if self.room < 0:
            raise self.error
        return super().write(text)

    def isatty(self):
        return True


BROKEN = {
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "a broken pipe": BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "a terminal that is gone": OSError(errno.EIO, "Input/output error"),
    "closed": ValueError("I/O operation on closed file."),
}


@pytest.mark.parametrize("room", [0, 300], ids=["from the start", "in mid-run"])
@pytest.mark.parametrize("error", BROKEN.values(), ids=BROKEN)
def test_progress_that_cannot_be_shown_ends_no_run(tmp_path, monkeypatch, capfd, error, room):
    monkeypatch.setattr(sys, "stderr", Broken(error, room))
    assert train(tmp_path) == 0
    assert len(metrics(tmp_path)) == 2 and "test accuracy" in capfd.readouterr().out


def test_no_stderr_at_all(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", None)
    assert train(tmp_path) == 0
    out = capfd.readouterr().out
    assert len(metrics(tmp_path)) == 2 and out.count("\n") == 1
    assert train(tmp_path) == 2  # a refusal that nobody hears


def test_a_result_that_cannot_be_shown(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", Broken(BROKEN["full"]))
    assert train(tmp_path) == 2
    err = capfd.readouterr().err.splitlines()
    assert err[-1].startswith("fastbn: error: the result could not be written to stdout: No space left")
    assert (tmp_path / "summary.json").exists()
    monkeypatch.setattr(sys, "stdout", Broken(BROKEN["a broken pipe"]))
    assert experiments(["list"]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("encoding", ["latin1", "ascii", "cp1252"])
def test_a_terminal_that_is_not_utf8(encoding, monkeypatch, capfd):
    for words, act in (
        (["--help"], main),
        (["list"], experiments),
        (["show", "paper-width"], experiments),
        (["--help"], evaluate.main),
    ):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            assert act(words) == 0
        except SystemExit as end:
            assert not end.code
        stream.flush()
        assert len(stream.buffer.getvalue()) > 100 and capfd.readouterr().err == ""


REFUSED = [
    ["--width", "1000000"],
    ["--depth", "600002"],
    ["--batch-size", "4611686018427387904"],
    ["--batch-size", "1" + "0" * 5000],
    ["--epochs", "1" + "0" * 30],
    ["--seed", "1" + "0" * 30],
    ["--bn-batch", str(2**62)],
    ["--track", ".x"],
    ["--track", "a b"],
    ["--train", "x" * 100_000],
    ["--dataset", "a\nb"],
    ["--data-dir", "bad\udcff"],
    ["--weights", "nul\0"],
    ["--weights", "a" * 300],
    ["--milestones", "1," * 50_000 + "x"],
    ["x" * 100_000],
]


@pytest.mark.parametrize(
    "arguments", REFUSED, ids=[" ".join(words)[:30].encode("unicode_escape").decode() for words in REFUSED]
)
def test_a_wrong_argument_is_one_short_line(tmp_path, capfd, arguments):
    assert main([*TINY, "--epochs", "1", "--out", str(tmp_path / "run"), *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("fastbn: error: ") and err.count("\n") == 1
    assert len(err) < 450 and err[:-1].isprintable()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "path", ["a" * 300, "nul\0", "bad\udcff", "/proc/1/mem/x", "/dev/zero", "file/below"]
)
def test_a_path_that_cannot_be_looked_at(path, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for act in (
        lambda: evaluate.main([path]),
        lambda: analyze.main([path]),
        lambda: experiments(["run", "torri-mlp", "--quick", "--out", path, "--", "--dataset", "digits"]),
        lambda: main([*TINY, "--epochs", "1", "--out", path]),
    ):
        assert act() == 2
        err = capfd.readouterr().err.splitlines()
        assert (
            err[-1].startswith("fastbn: error: ")
            and sum(line.startswith("fastbn: error") for line in err) == 1
        ), err


@pytest.mark.parametrize(
    "name, value",
    [("RANK", "x"), ("WORLD_SIZE", ""), ("RANK", "-1"), ("RANK", "1"), ("LOCAL_RANK", "1" * 5000)],
)
def test_an_environment_that_names_no_rank(name, value, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv(name, value)
    assert train(tmp_path / "run") == 2
    err = capfd.readouterr().err
    assert name in err and "torchrun" in err and err.count("\n") == 1 and len(err) < 450
    assert not (tmp_path / "run").exists()


def test_ends():
    def by(error):
        return command.ended(error)

    assert by(UsageError("x\ny")) == (r"error: x\ny", 2) and by(MachineError("x")) == ("error: x", 2)
    assert by(Diverged("x")) == ("diverged: x", 3) and by(KeyboardInterrupt()) == ("interrupted", 130)
    assert by(Stopped(signal.SIGTERM))[1] == 143
    assert by(MemoryError())[1] == 2 and "memory" in by(MemoryError())[0]
    assert (
        by(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"))[1] == 2
    )
    assert by(RuntimeError("x")) is None and by(KeyError("x")) is None


@pytest.mark.parametrize("act", [evaluate, analyze], ids=["evaluate", "analyze"])
def test_an_interruption_is_one_line(act, monkeypatch, capfd, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(act, "evaluate_run" if act is evaluate else "analyze", interrupted)
    assert act.main([str(tmp_path)]) == 130
    assert capfd.readouterr().err == "fastbn: interrupted\n"


def shell(words, *arguments, **environment):
    """Return what a shell makes of these words, in which $@ is the command."""
    here = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
        "OMP_NUM_THREADS": "1"
    }
    run = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(
        ["bash", "-c", words, "_", *run],
        cwd=REPOSITORY,
        env=here | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_standard_streams_of_a_process():
    """--help imports no torch, so these are quick."""
    for words in ('"$@" | head -1', '"$@" 2>&-', '"$@" >&-'):
        done = shell(words, "fastbn.experiments", "list")
        assert (done.returncode, done.stderr) == (0, ""), words
    assert shell('set -o pipefail; "$@" | head -0', "fastbn.train", "--help").stderr == ""
    full = shell('"$@" > /dev/full', "fastbn.experiments", "list")
    assert full.returncode == 2 and full.stderr.count("\n") == 1 and "No space left" in full.stderr
    assert shell('"$@"', "fastbn.train", "--help", PYTHONIOENCODING="ascii").returncode == 0


LOST = (
    '"$@" 2>/dev/full',
    '"$@" 2>&-',
    '"$@" 2>&- >&- <&-',
    '"$@" 2>&1 >/dev/null | head -1; exit ${PIPESTATUS[0]}',
)


@pytest.mark.slow
@pytest.mark.parametrize("words", LOST)
def test_a_run_whose_stderr_is_lost_goes_on(tmp_path, words):
    done = shell(words, "fastbn.train", *TINY, "--epochs", "2", "--threads", "1", "--out", tmp_path / "run")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert train(tmp_path / "whole", "--threads", "1") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_an_interruption_that_python_drops(capfd):
    def act():
        Dying()
        time.sleep(60)  # until the signal is there again
        return 0

    hook = sys.unraisablehook
    assert command.run(act) == 130
    assert capfd.readouterr().err == "fastbn: interrupted\n" and sys.unraisablehook is hook


def test_an_interruption_that_another_error_hides(capfd):
    def act():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("Error calling __set_name__") from error

    assert command.run(act) == 130
    assert capfd.readouterr().err == "fastbn: interrupted\n"


INTERRUPTED = """
import importlib, os, signal, sys, threading
module, wait, *words = sys.argv[1:]
found = importlib.import_module(module)
signal.signal(signal.SIGINT, signal.default_int_handler)
clock = threading.Timer(float(wait), os.kill, [os.getpid(), signal.SIGINT])
clock.daemon = True
run = found.command.run
found.command.run = lambda act: run(lambda: (clock.start(), act())[1])
found.command.leave(found.main(words))
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["fastbn.evaluate", "fastbn.analyze"])
def test_ctrl_c_in_a_process(module, tmp_path):
    """Most moments are an import's. Where it is in code that exec compiles, Python itself ends the process by
    SIGINT once its last line is said; a shell says 130 of either."""
    assert train(tmp_path / "run") == 0
    more = ["-o", tmp_path / "x.html"] if module == "fastbn.analyze" else []
    for wait in (0.01, 0.1, 0.5, 1, 2, 3):
        done = python(INTERRUPTED, module, wait, tmp_path / "run", *more)
        interrupted = done.stderr == "fastbn: interrupted\n" and done.returncode in (130, -signal.SIGINT)
        assert interrupted or (done.stderr, done.returncode) == ("", 0), (done.returncode, done.stderr)
