"""Runs that end badly: a wrong argument, a folder that can't be made, a training that diverges."""

import pytest
from runs import (
    checkpoint,
    metrics,
    refused,
    train,
)

from fastbn.train import main
from fastbn.training import checked_file

pytestmark = pytest.mark.usefixtures("one_thread")

WRONG = [
    (["--depth", "100"], ["6n+2", "98", "101"]),
    (["--depth", "50"], ["both", "family"]),
    (["--depth", "ten"], ["--depth", "'ten'"]),
    (["--width", "0"], ["width", "0"]),
    (["--family", "vgg"], ["vgg", "11, 13, 16, 19", "nearest: 11"]),
    (["--norm", "layer"], ["--norm", "layer", "instance"]),
    (["--norm", "group", "--engine", "reference"], ["reference", "--norm group", "--engine stock"]),
    (["--augment", "flip+blur"], ["augment", "blur", "brightness"]),
    (["--engine", "triton"], ["triton", "reference"]),
    (["--engine", "reference", "--train", "all"], ["reference", "all", "--engine stock"]),
    (["--device", "cuda"], ["cuda", "--device cpu"]),
    (["--precision", "tf32"], ["tf32", "fp32"]),
    (["--precision", "mixed"], ["mixed", "fp32"]),
    (["--epochs", "0"], ["epochs", "0"]),
    (["--batch-size", "0"], ["batch_size", "0"]),
    (["--lr", "nan"], ["lr", "nan"]),
    (["--lr", "1e39"], ["lr", "1e+39"]),
    (["--milestones", "5,3"], ["milestones", "(5, 3)"]),
    (["--milestones", "a"], ["--milestones", "80,120", "'a'"]),
    (["--threads", "99999999999999"], ["threads", "99999999999999"]),
    (["--dataset", "cifar10", "--data-dir", "nowhere"], ["CIFAR-10", "nowhere", "--download"]),
    (["--dataset", "mnist"], ["--dataset", "mnist", "cifar10"]),
    (["--train", "bogus"], ["train", "bogus", "output"]),
    (["--train", "outptu"], ["outptu", "nearest: output"]),
    (["--train", "bn@first-99"], ["bn@first-99", "ask for 1"]),
    (["--weights", "nowhere.pth"], ["nowhere.pth"]),
    (["--limit-train", "0"], ["limit-train", "0"]),
    (["--val", "64"], ["64"]),
    (["--seed", "-1"], ["seed", "-1"]),
    (["--bogus"], ["--bogus", "--help"]),
]


@pytest.mark.parametrize("arguments, said", WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_a_wrong_argument_is_one_line_and_holds_no_run(tmp_path, monkeypatch, capfd, no_gpu, arguments, said):
    monkeypatch.chdir(tmp_path)
    refused(train("run", *arguments), capfd, *said)
    assert not (tmp_path / "run").exists() or [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    assert {path.name for path in tmp_path.iterdir()} <= {"run"}


def test_the_depth_is_asked_for(capfd):
    refused(main([]), capfd, "--depth")


def test_a_folder_that_cannot_be_made(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    refused(train(tmp_path / "file" / "run"), capfd, "cannot write to", "--out")


def test_divergence(tmp_path, capfd):
    assert train(tmp_path, "--lr", "1e30") == 3
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("fastbn: diverged: ") and "lower --lr" in err
    assert "Traceback" not in err
    assert not (tmp_path / "checkpoint.safetensors").exists() and metrics(tmp_path) == []


def test_divergence_keeps_the_last_good_epoch(tmp_path, capfd):
    """One good epoch, then γ and β so large that the next overflows."""
    assert train(tmp_path, epochs=1) == 0
    tensors, header = checkpoint(tmp_path)
    tensors["parameters"].fill_(1e30)
    checked_file.write(tmp_path / "checkpoint.safetensors", tensors, header)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    assert train(tmp_path, "--resume", epochs=3) == 3
    assert "epoch 2" in capfd.readouterr().err
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert len(metrics(tmp_path)) == 1
