"""A run that is stopped, interrupted or killed, and resumed, equals one that never was: bit for bit."""

import os
import random
import signal
import time

import pytest
from runs import STEPS, TINY, Dying, assert_same_run, at_call, checkpoint, contents, metrics, start, train

from fastbn.cli import command
from fastbn.data.feed import Resident
from fastbn.errors import Stopped
from fastbn.run import folder
from fastbn.train import main
from fastbn.training.step import TrainingStep

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {
    "sgd": ["--nesterov"],
    "adam": ["--optimizer", "adam", "--lr", "0.01", "--schedule", "cosine", "--val", "8"],
}
EPOCHS = 2


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory):
    """(its arguments, the folder of a run that was never interrupted)"""
    out = tmp_path_factory.mktemp("resume") / "whole"
    assert train(out, *KINDS[request.param], epochs=EPOCHS) == 0
    return KINDS[request.param], out


class Killed(BaseException):
    """Ends a run as a kill does: nothing that handles errors sees it."""


def raise_signal(number):
    # handled before this returns, where os.kill may reach another thread, and later
    return lambda: signal.raise_signal(number)


def resumed_equals(whole, out):
    arguments, expected = whole
    assert train(out, "--resume", *arguments, epochs=EPOCHS) == 0
    assert_same_run(out, expected)
    best = expected / "best.safetensors"
    if best.exists():
        assert (
            folder.checked_file.read(out / "best.safetensors")[1]["epoch"]
            == folder.checked_file.read(best)[1]["epoch"]
        )


MOMENTS = [  # each with one of the signals, and slowly with the other
    pytest.param(
        number, code, step, id=f"{number.name}-{step}", marks=pytest.mark.slow if (i + j) % 2 else ()
    )
    for i, step in enumerate((0, 1, STEPS, 2 * STEPS - 2))
    for j, (number, code) in enumerate(((signal.SIGTERM, 143), (signal.SIGINT, 130)))
]


@pytest.mark.parametrize("number, code, step", MOMENTS)
def test_a_signal_in_an_epoch(whole, tmp_path, monkeypatch, capfd, number, code, step):
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patched:
        at_call(patched, TrainingStep, "__call__", step, raise_signal(number))
        assert train(tmp_path, *whole[0], epochs=EPOCHS) == code
    steps = -(-(56 if "--val" in whole[0] else 64) // 24)
    position = checkpoint(tmp_path)[1]["position"]
    assert (position["epoch"], position["step"]) == (step // steps, step % steps + 1)
    assert len(metrics(tmp_path)) == step // steps
    out, err = capfd.readouterr()
    assert out == "" and "--resume" in err.splitlines()[-1] and "Traceback" not in err
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    resumed_equals(whole, tmp_path)


def test_the_folder_alone_says_how_to_go_on(whole, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patched:
        at_call(patched, TrainingStep, "__call__", 1, raise_signal(signal.SIGTERM))
        assert train(tmp_path, *whole[0], epochs=EPOCHS) == 143
    assert main(["--resume", "--out", str(tmp_path)]) == 0
    assert_same_run(tmp_path, whole[1])
    capfd.readouterr()
    for broken in ("{", "[]", None):
        (tmp_path / "config.json").unlink()
        if broken:
            (tmp_path / "config.json").write_text(broken)
        else:
            (tmp_path / "config.json").mkdir()
        assert main(["--resume", "--out", str(tmp_path)]) == 2
        assert "config.json" in capfd.readouterr().err


@pytest.mark.parametrize("evaluation_number", [0, 1])
def test_a_signal_in_an_evaluation(whole, tmp_path, monkeypatch, evaluation_number):
    with monkeypatch.context() as patched:
        at_call(patched, Resident, "held_out", evaluation_number, raise_signal(signal.SIGTERM))
        assert train(tmp_path, *whole[0], epochs=EPOCHS) == 143
    assert checkpoint(tmp_path)[1]["position"]["step"] == STEPS
    resumed_equals(whole, tmp_path)


def test_stopped_again_and_again(whole, tmp_path, monkeypatch):
    """After every single step."""
    code, stops = 143, 0
    while code == 143:
        with monkeypatch.context() as patched:
            at_call(patched, TrainingStep, "__call__", 0, raise_signal(signal.SIGTERM))
            code = train(tmp_path, "--resume", *whole[0], epochs=EPOCHS)
        stops += code == 143
    assert (code, stops) == (0, EPOCHS * STEPS)
    assert_same_run(tmp_path, whole[1])


@pytest.mark.slow
def test_a_kill_at_every_write(whole, tmp_path, monkeypatch):
    """Before each flush to the disk and before each renaming: config, metrics, best, checkpoint, summary."""
    with monkeypatch.context() as patched:
        counts = {name: at_call(patched, os, name, -1, None) for name in ("fsync", "replace")}
        assert train(tmp_path / "counted", *whole[0], epochs=EPOCHS) == 0
    for name, calls in counts.items():
        assert calls[0] > 2 * EPOCHS

        def killed():
            raise Killed

        for number in range(calls[0]):
            out = tmp_path / f"{name}{number}"
            with monkeypatch.context() as patched, pytest.raises(Killed):
                at_call(patched, os, name, number, killed)
                train(out, *whole[0], epochs=EPOCHS)
            resumed_equals(whole, out)


def test_a_second_signal_ends_at_once(tmp_path, monkeypatch, capfd):
    """It does not wait for the step: nothing is saved, what was saved stays."""

    def twice():
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    assert train(tmp_path, epochs=1) == 0
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        at_call(patched, TrainingStep, "__call__", 1, twice)
        assert train(tmp_path, "--resume", epochs=3) == 130
    err = capfd.readouterr().err
    assert "Traceback" not in err and "intact" in err.splitlines()[-1]
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_a_second_signal_in_a_finalizer_is_not_lost(tmp_path, monkeypatch, capfd):
    def twice():
        signal.raise_signal(signal.SIGINT)
        Dying()

    assert train(tmp_path, epochs=1) == 0
    before = contents(tmp_path)["checkpoint.safetensors"]
    with monkeypatch.context() as patched:
        at_call(patched, TrainingStep, "__call__", 1, twice)
        assert train(tmp_path, "--resume", epochs=3) == 130
    err = capfd.readouterr().err
    assert "ignored" not in err and "interrupted; the checkpoint is intact" in err.splitlines()[-1]
    assert contents(tmp_path)["checkpoint.safetensors"] == before


def test_a_signal_while_the_last_line_is_said_changes_nothing(tmp_path, monkeypatch, capfd):
    at_call(monkeypatch, command, "_line", 0, raise_signal(signal.SIGINT))
    handler = signal.getsignal(signal.SIGINT)
    assert train(tmp_path, "--lr", "0") == 2
    assert capfd.readouterr().err.count("\n") == 1 and signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(SystemExit) as left, command.unhurried():
        command.leave(130)
    assert left.value.code == 130 and signal.getsignal(signal.SIGINT) is handler


def test_a_signal_after_divergence_saves_nothing(tmp_path, monkeypatch, capfd):
    at_call(monkeypatch, TrainingStep, "__call__", 2, raise_signal(signal.SIGTERM))
    assert train(tmp_path, "--lr", "1e30") == 3
    assert "diverged" in capfd.readouterr().err
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_stopping_is_no_exception_that_a_program_would_swallow():
    assert issubclass(Stopped, BaseException) and not issubclass(Stopped, Exception)


def process(out, epochs):
    return start(*TINY, "--threads", "1", "--epochs", epochs, "--resume", "--out", out)


def lines(out):
    return (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").exists() else 0


def wait_for_lines(running, out, number):
    deadline = time.monotonic() + 240  # its imports alone take long on a busy machine
    while running.poll() is None and lines(out) < number and time.monotonic() < deadline:
        time.sleep(0.002)
    assert running.poll() is None, running.communicate(timeout=60)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=["SIGTERM", "SIGKILL"]
)
def test_a_process_that_is_ended_while_it_trains(tmp_path, number, code):
    epochs, out = 40, tmp_path / "run"
    running = process(out, epochs)
    wait_for_lines(running, out, 3)
    running.send_signal(number)
    said, err = running.communicate(timeout=60)
    assert running.returncode == code and said == "" and "Traceback" not in err
    assert 3 <= lines(out) < epochs
    assert main([*TINY, "--epochs", str(epochs), "--out", str(out), "--resume"]) == 0
    assert train(tmp_path / "whole", epochs=epochs) == 0
    assert_same_run(out, tmp_path / "whole")


@pytest.mark.slow
def test_a_process_that_is_killed_at_random_until_it_is_done(tmp_path):
    """The kills come between torch's import and the last write; the moments differ from run to run, on
    purpose, and are printed."""
    epochs, out, kills = 200, tmp_path / "run", []
    while True:
        running = process(out, epochs)
        begun = lines(out)
        if len(kills) < 12:
            wait_for_lines(running, out, begun + random.choice((0, 1, 5)))
            time.sleep(random.uniform(0, 0.5))
            running.kill()
        err = running.communicate(timeout=300)[1]
        if running.returncode == 0:
            break
        kills.append(lines(out))
        print("killed after", kills[-1], "epochs")
        assert running.returncode == -9, err
    assert kills
    assert train(tmp_path / "whole", epochs=epochs) == 0
    assert_same_run(out, tmp_path / "whole")
