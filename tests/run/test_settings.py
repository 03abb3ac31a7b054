"""A run's settings: asked by a Config, resolved once, and handed to few."""

import dataclasses
import json
import os
import shutil
import sys

import pytest
from runs import TINY, checkpoint, contents, metrics, train

from fastbn import analyze, evaluate
from fastbn.recipe import Recipe, ResolvedRecipe
from fastbn.run.settings import ResolvedRun
from fastbn.settings.arguments import parse
from fastbn.settings.config import Config
from fastbn.train import main
from fastbn.training import checked_file
from fastbn.training.step import TrainingStep

pytestmark = pytest.mark.usefixtures("one_thread")
MOST = 25  # functions between the command line and the first step


class FirstStep(Exception):
    pass


def receivers(act, kinds):
    """Return the functions of fastbn that are called with an argument of these kinds while act() runs."""
    found = set()

    def watch(frame, event, _):
        code = frame.f_code
        if event != "call" or "/fastbn/" not in code.co_filename:
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(isinstance(frame.f_locals.get(name), kinds) for name in names):
            found.add((code.co_filename.rpartition("/fastbn/")[2], code.co_name, code.co_firstlineno))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        act()
    finally:
        sys.setprofile(before)
    return found


def test_few_functions_receive_the_settings(tmp_path, monkeypatch, capfd):
    """The functions from the command line to the first step count, the settings' own methods among them."""

    def step(*_):
        raise FirstStep

    monkeypatch.setattr(TrainingStep, "__call__", step)
    monkeypatch.setattr("fastbn.cli.command.run", lambda act: act())

    def act():
        with pytest.raises(FirstStep):
            main([*TINY, "--out", str(tmp_path / "run")])

    found = receivers(act, (Recipe, ResolvedRecipe, ResolvedRun))
    assert len(found) <= MOST, sorted(found)
    assert {("run/resolve.py", "resolve"), ("training/fit.py", "prepared")} <= {place[:2] for place in found}


def test_nothing_is_open_in_a_resolved_run(tmp_path, monkeypatch, capfd):
    seen = []

    def network(run, images):
        seen.append(run)
        raise FirstStep

    monkeypatch.setattr("fastbn.run.run.network_of", network)
    monkeypatch.setattr("fastbn.cli.command.run", lambda act: act())
    with pytest.raises(FirstStep):
        main([*TINY, "--precision", "auto", "--lr", "0.2", "--out", str(tmp_path / "run")])
    (run,) = seen
    without = {"bn_batch", "memory"}  # a value there is a limit, None none
    for part in (run.spec, run.recipe, run):
        for field in dataclasses.fields(part):
            assert field.name in without or getattr(part, field.name) not in (None, "auto"), field.name
    for part in (run, run.recipe):
        with pytest.raises(dataclasses.FrozenInstanceError):
            part.seed = 1
    assert run.settings()["lr"] == 0.2 and run.settings()["milestones"] == [7, 11]
    assert run.settings().keys() == run.asked.asdict().keys()
    json.dumps(run.settings())


def test_the_settings_of_one_family_are_its_own(capfd):
    """They are options of the command line and lines of config.json, and no field of every run's Config."""
    lstm = parse(["--family", "lstm", "--vectors", "glove.txt", "--embedding", "25"])
    assert dict(lstm.study) == {"embedding": 25, "vectors": "glove.txt"}
    assert parse(["--family", "lstm", "--embedding", "200"]).study == ()
    names = list(Config(depth=8).asdict())
    assert names[names.index("pixels") + 1 : names.index("train")] == ["embedding", "vectors"]
    assert not {"embedding", "vectors"} & {field.name for field in dataclasses.fields(Config)}
    assert Config.of(lstm.asdict()) == lstm and hash(lstm) == hash(Config.of(lstm.asdict()))
    for option in (["--embedding", "25"], ["--vectors", "glove.txt"]):
        assert main([*TINY, *option]) == 2
        assert f"{option[0]} is no setting of family cifar; it is for --family lstm" in capfd.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert train(out, epochs=1) == 0
    return out


PLACES = {
    "data_dir": ({"dataset": "cifar10"}, "--data-dir"),
    "weights": ({}, "--weights"),
    "vectors": ({}, "--vectors"),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_path_in_a_file_is_asked_for_again(finished, tmp_path, monkeypatch, capfd, name):
    run, (beside, flag) = shutil.copytree(finished, tmp_path / "run"), PLACES[name]
    path = tmp_path / "elsewhere"
    os.mkfifo(path)  # to open it would be to wait
    config = json.loads((run / "config.json").read_text()) | beside | {name: str(path)}
    (run / "config.json").write_text(json.dumps(config))
    tensors, header = checkpoint(run)
    checked_file.write(run / "checkpoint.safetensors", tensors, header | {"config": config})
    before = contents(run)
    for act in (
        lambda: main(["--resume", "--out", str(run), "--epochs", "2"]),
        lambda: main([*TINY, "--dataset", config["dataset"], "--resume", "--out", str(run), "--epochs", "2"]),
    ):
        assert act() == 2
        out, err = capfd.readouterr()
        assert out == "" and err.count("\n") == 1 and "elsewhere" in err and f"give {flag} again" in err, err
    assert contents(run) == before
    if name == "data_dir":
        assert evaluate.main([str(run)]) == analyze.main([str(run), "-o", str(tmp_path / "x.html")]) == 2
        err = capfd.readouterr().err
        assert err.count("\n") == 2 and err.count("give --data-dir") == 2


def test_a_path_that_is_given_again_is_followed(finished, tmp_path, capfd):
    out, whole = tmp_path / "run", tmp_path / "whole"
    for folder, epochs in ((whole, 2), (out, 1)):
        assert train(folder, "--schedule", "constant", "--weights", str(finished), epochs=epochs) == 0
    moved = shutil.copytree(finished, tmp_path / "moved")
    assert main(["--resume", "--out", str(out), "--epochs", "2", "--weights", str(moved)]) == 0
    assert metrics(out)[1]["train_loss"] == metrics(whole)[1]["train_loss"]
