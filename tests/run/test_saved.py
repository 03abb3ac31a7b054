"""What a run's files may say: one that says something else, under a right digest too, is refused in one
line."""

import json
import os
import shutil

import pytest
import safetensors.torch
import torch
from runs import checkpoint, metrics, network, train

from fastbn import analyze, evaluate
from fastbn.errors import UsageError
from fastbn.settings import saved
from fastbn.train import main
from fastbn.training import checked_file
from fastbn.training.checkpoint import load, save

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert train(out, "--train", "bn+random=2") == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def rewritten(run, alter):
    tensors, header = checkpoint(run)
    alter(tensors, header)
    checked_file.write(run / "checkpoint.safetensors", tensors, header)


def into(name, **values):
    return lambda tensors, header: header[name].update(values)


def without(*keys):
    def alter(tensors, header):
        for key in keys[:-1]:
            header = header[key]
        del header[keys[-1]]

    return alter


def tensor(name, value):
    return lambda tensors, header: tensors.update({name: value(tensors[name]) if name in tensors else value})


def filled(name, value):
    return tensor(name, lambda t: t.clone().index_fill_(0, torch.tensor([len(t) - 1]), value))


def one_line(code, capfd, *patterns):
    out, err = capfd.readouterr()
    last = err.splitlines()[-1]
    assert (
        (code, out) == (2, "")
        and last.startswith("fastbn: error: ")
        and len(last) < 450
        and last.isprintable()
    ), err
    assert all(pattern in last for pattern in patterns) and err.count("fastbn: error: ") == 1, err


HEADERS = {
    "a depth of no end": into("model", depth=600_002),
    "many classes": into("model", num_classes=10**7),
    "a wide network": into("model", width=10_000),
    "a wider network": into("model", width=64),
    "a text for a depth": into("model", depth="8"),
    "a family that is none": into("model", family="os:system"),
    "a list for a family": into("model", family=["cifar"]),
    "a depth of another family": into("model", family="vgg"),
    "an unknown key of the model": into("model", x=1),
    "no depth": without("model", "depth"),
    "no model": without("model"),
    "a model that is a list": lambda tensors, header: header.update(model=[]),
    "no source": without("source"),
    "no digest": without("source", "sha256"),
    "an unknown key of the source": into("source", x=1),
    "a kind of source that is none": into("source", kind="http"),
    "a digest that is none": into("source", sha256=["a"]),
    "trains a number": lambda tensors, header: header.update(trains=3),
    "trains what is not there": lambda tensors, header: header["trains"].append("conv9\nweight"),
    "trains nothing of it": lambda tensors, header: header.update(trains=[]),
    "no trains": without("trains"),
    "entries of what has none": lambda tensors, header: header.update(entries=["bn1.bias"]),
    "entries twice": lambda tensors, header: header.update(
        entries=header["entries"][:1] * len(header["entries"])
    ),
    "no entries": without("entries"),
    "entries cut": tensor("entries", lambda t: t[:-1]),
    "a data set that is none": into("config", dataset="os"),
    "a limit that is a text": into("config", limit_test="5"),
    "an unknown setting": into("config", x=1),
    "a tensor that is none's": tensor("unknown", torch.zeros(3)),
    "γ that are no numbers": filled("parameters", float("nan")),
    "an infinite mean": filled("running", float("inf")),
    "a negative variance": filled("running", -1.0),
    "a negative count": filled("batches", -1),
    "counts that are no integers": tensor("batches", lambda t: t.float()),
    "parameters that are integers": tensor("parameters", lambda t: t.long()),
}


@pytest.mark.parametrize("alter", HEADERS.values(), ids=HEADERS)
def test_a_checkpoint_that_is_signed_and_wrong(run, capfd, alter):
    rewritten(run, alter)
    with pytest.raises(UsageError):
        load(run)
    before = (run / "config.json").read_bytes(), (run / "metrics.jsonl").read_bytes()
    one_line(main(["--resume", "--out", str(run), "--epochs", "3"]), capfd, "")
    assert ((run / "config.json").read_bytes(), (run / "metrics.jsonl").read_bytes()) == before


def test_every_command_refuses_it(run, tmp_path, capfd):
    rewritten(run, into("model", depth=600_002))
    one_line(evaluate.main([str(run)]), capfd, "depth must be")
    one_line(analyze.main([str(run), "--no-data", "-o", str(tmp_path / "x.html")]), capfd, "depth must be")
    one_line(train(tmp_path / "new", "--weights", str(run)), capfd, "depth must be")
    assert not (tmp_path / "new").exists() and not (tmp_path / "x.html").exists()


POSITIONS = {
    "no epoch": without("position", "epoch"),
    "an epoch of -1": into("position", epoch=-1),
    "an epoch that is a text": into("position", epoch="1"),
    "a step that no epoch has": into("position", step=99),
    "more images than there are": into("position", images=99),
    "a loss that is no number": into("position", loss=float("nan")),
    "an unknown key": into("position", x=1),
    "a list": lambda tensors, header: header.update(position=[1]),
    "momentum that is short": tensor("optimizer.momentum", lambda t: t[:-1]),
    "momentum that is no number": filled("optimizer.momentum", float("nan")),
    "no momentum": lambda tensors, header: tensors.pop("optimizer.momentum"),
}


@pytest.mark.parametrize("alter", POSITIONS.values(), ids=POSITIONS)
def test_a_position_that_no_run_comes_to(run, capfd, alter):
    rewritten(run, alter)
    one_line(main(["--resume", "--out", str(run), "--epochs", "3"]), capfd, "checkpoint")


@pytest.fixture
def from_file(tmp_path):
    """A checkpoint of a network whose frozen weights came from a file."""
    safetensors.torch.save_file(network(seed=9).state_dict(), tmp_path / "w.safetensors")
    save(network(weights=tmp_path / "w.safetensors"), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    "file",
    ["/dev/zero", "/etc/passwd", "fifo.pth", "device.pth", "w.safetensors", "folder.pth", "", None, "a\0b"],
)
def test_a_path_that_a_checkpoint_may_not_name(from_file, monkeypatch, file):
    """Nothing is opened: the file is one by its whole path, of a name that weights have; a relative path is
    not looked for."""
    folder = from_file.parent
    monkeypatch.chdir(folder)
    os.mkfifo(folder / "fifo.pth")
    (folder / "folder.pth").mkdir()
    (folder / "device.pth").symlink_to("/dev/zero")
    tensors, header = checked_file.read(from_file)
    named = str(folder / file) if file and file.endswith(".pth") else file
    header["source"]["file"] = named
    checked_file.write(from_file, tensors, header)
    with pytest.raises(UsageError, match=r"weights=|can't be"):
        load(from_file)
    if named is None or "\0" not in named:
        load(from_file, weights=folder / "w.safetensors")


SETTINGS = {
    "threads": "1",
    "milestones": ["a"],
    "epochs": 1e400,
    "lr": "nan",
    "dataset": ["digits"],
    "data_dir": 5,
    "device": "/dev/zero",
    "engine": {},
    "seed": 10**30,
    "train": ["bn"],
    "weights": 7,
    "ranks": "2",
    "unknown": 1,
}


@pytest.mark.parametrize("name, value", SETTINGS.items())
def test_settings_of_a_wrong_kind(run, capfd, name, value):
    config = json.loads((run / "config.json").read_text()) | {name: value}
    (run / "config.json").write_text(json.dumps(config))
    one_line(main(["--resume", "--out", str(run), "--epochs", "3"]), capfd, name, "config.json")
    one_line(analyze.main([str(run), "--no-data", "-o", str(run / "x.html")]), capfd, name, "config.json")
    assert json.loads((run / "config.json").read_text())["epochs"] == config["epochs"]


LINES = {
    "epoch": 7,
    "train_accuracy": "0.5",
    "test_accuracy": 1.5,
    "test_loss": None,
    "seconds": -1,
    "images_per_second": [],
    "peak_memory_bytes": 1.5,
    "norms": {"gamma_mean": [1, "x"]},
}


@pytest.mark.parametrize("name, value", LINES.items())
def test_an_epoch_of_a_wrong_kind(run, capfd, name, value):
    lines = metrics(run)
    lines[0][name] = value
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    one_line(main(["--resume", "--out", str(run), "--epochs", "3"]), capfd, "metrics.jsonl: line 1")
    one_line(analyze.main([str(run), "--no-data", "-o", str(run / "x.html")]), capfd, "metrics.jsonl: line 1")
    assert metrics(run) == lines


def test_every_file_that_a_run_writes_may_say_what_it_says(finished, tmp_path):
    """What is written is what is read: with a validation set, ranks, Adam."""
    assert train(tmp_path, "--val", "16", "--optimizer", "adam", "--lr", "0.01") == 0
    for folder in (finished, tmp_path):
        saved.settings(saved.json_file(folder / "config.json"), folder)
        assert saved.lines(folder / "metrics.jsonl", saved.FULL_EPOCH) == metrics(folder)
        assert saved.summary(folder / "summary.json")["epochs"] == 2
    assert main(["--resume", "--out", str(tmp_path), "--epochs", "3"]) == 0
    assert checked_file.read(tmp_path / "best.safetensors")[1]["val_accuracy"] >= 0


def test_a_line_that_is_being_written(finished, tmp_path):
    whole = (finished / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole[:-20])
    assert len(saved.lines(tmp_path / "metrics.jsonl", (), being_written=True)) == 1
    with pytest.raises(UsageError, match="line 2 is no epoch's"):
        saved.lines(tmp_path / "metrics.jsonl", ())
    assert saved.lines(tmp_path / "nowhere", ()) == []
