"""The command line as a person meets it: help, misspelled words, lines that fit, what a run says and is
called."""

import io
import json
import math
import re
import sys

import pytest
import torch
from runs import TINY, train

from fastbn import analyze, doctor, evaluate, patch
from fastbn.__main__ import commands
from fastbn.__main__ import main as fastbn
from fastbn.cli.command import wrapped
from fastbn.experiments.__main__ import main as experiments
from fastbn.machine import devices
from fastbn.run import messages
from fastbn.run.build import spec_of
from fastbn.settings.arguments import parse
from fastbn.settings.config import known
from fastbn.train import main
from fastbn.training.progress import Progress, brief, duration
from fastbn.training.totals import Totals
from fastbn.version import VERSION

pytestmark = pytest.mark.usefixtures("one_thread")


class Terminal(io.StringIO):
    def isatty(self):
        return True


HELPS = {
    "train": main,
    "evaluate": evaluate.main,
    "analyze": analyze.main,
    "experiments": experiments,
    "patch": patch.main,
    "doctor": doctor.main,
}


def shown(act, words, capfd):
    """Return what a command prints that exits by itself."""
    with pytest.raises(SystemExit) as ended:
        act(words)
    out, err = capfd.readouterr()
    assert not ended.value.code and err == ""
    return out


@pytest.mark.parametrize("name", HELPS)
def test_help_fits_and_ends_with_three_examples(name, capfd):
    text = shown(HELPS[name], ["--help"], capfd)
    assert max(map(len, text.splitlines())) <= 80
    head, _, examples = text.partition("\nexamples:\n")
    assert examples.count(f"python -m fastbn.{name}") == 3 and len(examples.splitlines()) == 6
    for group in re.split(r"\n\n(?=[a-z ]+:\n)", head)[1:]:
        assert len(re.findall(r"^  -", group, re.M)) <= 12, group
    usage = text.partition("\n\n")[0]
    assert "[--depth" not in usage and "[RUN" not in usage.replace("RUN [RUN ...]", "RUN")


@pytest.mark.parametrize(
    "act, kinds",
    [(experiments, ("list", "show", "run", "table")), (patch.main, ("show", "diff", "apply", "merge"))],
    ids=["experiments", "patch"],
)
def test_the_help_of_a_part_fits_and_says_what_each_word_is(act, kinds, capfd):
    for kind in kinds:
        text = shown(act, [kind, "--help"], capfd)
        assert max(map(len, text.splitlines())) < 80
        places = text.partition("positional arguments:\n")[2].partition("\n\n")[0].splitlines()
        assert all(len(line.split()) > 1 for line in places), text


def test_help_all_shows_every_option_and_help_most(capfd):
    short, whole = (shown(main, [words], capfd) for words in ("--help", "--help-all"))
    for name, one in known().items():
        flag = f"  --{name.replace('_', '-')} "
        assert flag.rstrip() in whole and (flag in short or f"{flag}\n" in short) is not one.advanced, name
    assert "--help-all" in short and max(map(len, whole.splitlines())) <= 80


def test_one_command_for_all(capfd):
    assert fastbn([]) == fastbn(["--help"]) == 0
    out = capfd.readouterr().out
    assert all(f"  {name} " in out for name in commands()) and {"train", "doctor"} <= commands().keys()
    assert fastbn(["--version"]) == 0
    assert capfd.readouterr().out == f"fastbn {VERSION}\n" == shown(fastbn, ["train", "--version"], capfd)
    assert fastbn(["trian", "--depth", "8"]) == 2
    assert "nearest: train" in capfd.readouterr().err
    assert fastbn(["train", "--depth", "7"]) == 2
    assert "depth" in capfd.readouterr().err


def test_the_program_is_called_as_it_was_started(monkeypatch, capfd):
    for argv, said in (
        ("/usr/bin/fastbn", "usage: fastbn train --depth N"),
        ("/x/fastbn/__main__.py", "usage: python -m fastbn train --depth N"),
        ("/x/fastbn/train.py", "usage: python -m fastbn.train --depth N"),
    ):
        monkeypatch.setattr(sys, "argv", [argv])
        assert shown(main, ["--help"], capfd).startswith(said)


MISSPELLED = [
    (main, ["--depth", "8", "--datset", "digits"], "--datset", "--dataset"),
    (main, ["--dept", "8"], "--dept", "--depth"),
    (main, ["--depth", "8", "--weight-deca=0"], "--weight-deca", "--weight-decay"),
    (main, ["--depth", "8", "--norm-ep", "1"], "--norm-ep", "--norm-eps"),
    (main, ["--depth", "8", "--dataset", "digts"], "'digts'", "digits"),
    (main, ["--depth", "8", "--train", "gama"], "'gama'", "gamma"),
    (evaluate.main, ["run", "--limit-tets", "3"], "--limit-tets", "--limit-test"),
    (analyze.main, ["run", "--no-dat"], "--no-dat", "--no-data"),
    (experiments, ["lsit"], "'lsit'", "list"),
    (experiments, ["run", "torri-mlp", "--quik"], "--quik", "--quick"),
    (doctor.main, ["--no-sped"], "--no-sped", "--no-speed"),
]


@pytest.mark.parametrize("act, words, wrong, near", MISSPELLED, ids=[" ".join(one[1]) for one in MISSPELLED])
def test_a_misspelled_word_names_the_nearest(act, words, wrong, near, capfd):
    assert act(words) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and wrong in err and f"nearest: {near}" in err, err


def test_lines_fit_a_terminal():
    text = (
        "plan      "
        + "batch 128; the forward saves what it reads, " * 5
        + "\n| a | "
        + "b" * 90
        + " |\nshort"
    )
    lines = wrapped(text, 80).split("\n")
    assert all(len(line) < 80 for line in lines if not line.startswith("|"))
    assert (
        len(lines) > 4
        and lines[1].startswith(" " * 10)
        and lines[1][10] != " "
        and lines[-1] == "short"
        and f"| a | {'b' * 90} |" in lines
    )
    assert wrapped("x" * 200, 80) == "x" * 200  # a path stays whole


def folder(*words):
    config = parse(["--depth", "8", *words])
    return messages.name(config, spec_of(config), "digits")


def test_the_default_folder_tells_recipes_apart():
    assert folder() == "resnet8-digits-bn-s0"
    assert folder("--epochs", "3", "--engine", "stock", "--resume", "--threads", "1") == folder()
    assert folder("--lr", "0.3", "--batch-size", "64") == "resnet8-digits-bn-s0-batch64-lr0.3"
    names = [
        ["--lr", "0.2"], ["--nesterov"], ["--schedule", "cosine"], ["--milestones", "3,5"], ["--width", "8"],
        ["--gamma-init", "ones"], ["--weight-decay", "0"], ["--batch-size", "auto"], ["--seed", "1"],
        ["--train", "all"], ["--optimizer", "adam"], ["--augment", "none"],
    ]  # fmt: skip
    found = [folder(*words) for words in names]
    assert len({*found, folder()}) == len(names) + 1 and all("/" not in name for name in found)
    long = [word for words in names[:-3] for word in words]
    assert len(folder(*long)) <= messages.LONGEST_NAME and folder(*long) != folder(*long, "--bn-batch", "4")


def test_what_a_run_says(tmp_path, monkeypatch, capfd):
    """A batch larger than the data set is planned as what it is; a busy machine is told of once."""
    monkeypatch.setattr(devices, "load", lambda: 9.5)
    monkeypatch.setattr(devices, "processors", lambda: 2)
    words = [*TINY, "--batch-size", "4096", "--epochs", "1"]
    assert main([*words, "--explain"]) == 0
    said = capfd.readouterr().out
    assert "batch 4096, sgd" in said and "plan      batch 64; " in said
    assert main([*words, "--threads", "2", "--out", str(tmp_path / "run")]) == 0
    torch.set_num_threads(1)
    lines = capfd.readouterr().err.splitlines()
    assert sum(line.startswith("plan      batch 64; ") for line in lines) == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["batch_size"] == 4096
    assert sum(line.startswith("busy      9.5 processes want 2 processors") for line in lines) == 1


def test_a_person_is_told_what_to_do_next(tmp_path, monkeypatch, capfd):
    terminal = Terminal()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert train("run", epochs=1) == 0
    lines = terminal.getvalue().splitlines()
    assert lines[-2:] == [
        "next      python -m fastbn.evaluate run",
        "          python -m fastbn.analyze run -o report.html",
    ]
    assert max(map(len, lines)) < 80


@pytest.mark.parametrize("device, threads, load", [("cpu", 1, 9.5), ("cuda", 2, 9.5), ("cpu", 2, 1.5)])
def test_nothing_is_said_where_the_machine_is_not_busy(device, threads, load, monkeypatch):
    monkeypatch.setattr(devices, "load", lambda: load)
    monkeypatch.setattr(devices, "processors", lambda: 2)
    assert messages.busy(device, threads) == []


def test_a_test_loss_that_is_no_number_is_no_success(tmp_path, monkeypatch, capfd):
    original = Totals.mean

    def broken(self, prefix):
        return original(self, prefix) | ({"test_loss": math.nan} if prefix == "test" else {})

    monkeypatch.setattr(Totals, "mean", broken)
    assert train(tmp_path, epochs=1) == 3
    out, err = capfd.readouterr()
    assert out == "" and "diverged: the test loss is nan" in err.splitlines()[-1] and "--lr" in err
    assert "the checkpoint is intact" in err.splitlines()[-1]


def test_the_bar_shows_what_is_left(monkeypatch):
    terminal, clock = Terminal(), iter(range(0, 10_000, 10))
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("fastbn.training.progress.time.monotonic", lambda: float(next(clock)))
    bar, totals = Progress(3, True), Totals.zero(torch.device("cpu"))
    bar.start(0, 1_000, 0)
    totals.images, totals.loss, totals.correct = 250, totals.loss + 500, totals.correct + 50
    bar.advance(250, totals)  # ten seconds after the start
    assert "loss 2.0000 accuracy 0.200 25/s, 0:30 left, 1:50 in all" in terminal.getvalue()
    bar.close()


def test_figures_in_few_characters():
    assert [brief(2.34567), brief(5.5e13), brief(math.inf)] == ["2.3457", "5.50e+13", "inf"]
    assert [duration(s) for s in (5, 750, 11_045, 1e12)] == ["0:05", "12:30", "3:04:05", "99:59:59"]
