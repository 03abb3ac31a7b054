"""python -m fastbn.train: what a run leaves in its folder and says, and how it refuses."""

import fcntl
import json
import math
import shutil

import pytest
import torch
from runs import (
    STEPS,
    TIMES,
    TINY,
    assert_same_run,
    checkpoint,
    contents,
    metrics,
    network,
    refused,
    train,
)

from fastbn import evaluate
from fastbn.engine.select import choose
from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.train import main
from fastbn.training import checked_file
from fastbn.training.checkpoint import load

pytestmark = pytest.mark.usefixtures("one_thread")

AUTO = choose("auto", torch.device("cpu"), torch.float32)[0].name
LINE = {"epoch", "step", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "norms"} | TIMES


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs, not to be written to."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert train(out) == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_s_folder(tmp_path, capfd):
    out = tmp_path / "deep" / "run"
    assert train(out) == 0
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "checkpoint.safetensors",
        "summary.json",
        "lock",
    }

    config = json.loads((out / "config.json").read_text())
    open_ones = {name for name, value in config.items() if value in (None, "auto")}
    assert open_ones == {
        "weights",
        "val",
        "augment",
        "vectors",
        "devices",
        "step_seconds",
        "on",
        "memory",
        "bn_batch",
        "track",
    }
    expected = {
        "dataset": "digits",
        "family": "cifar",
        "width": 4,
        "engine": AUTO,
        "device": "cpu",
        "precision": "fp32",
    }
    assert expected.items() <= config.items()
    assert (config["epochs"], config["milestones"], config["lr"], config["threads"]) == (
        2,
        [1],
        0.1,
        torch.get_num_threads(),
    )

    lines = metrics(out)
    assert [set(line) for line in lines] == [LINE, LINE]
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, STEPS), (1, 2 * STEPS)]
    assert all(0 <= line["test_accuracy"] <= 1 and math.isfinite(line["test_loss"]) for line in lines)

    summary = json.loads((out / "summary.json").read_text())
    assert summary["test_accuracy"] == lines[-1]["test_accuracy"]
    assert (summary["trained_parameters"], summary["parameters"], summary["epochs"]) == (168, 5214, 2)
    assert {
        "engine",
        "engine_why",
        "device",
        "versions",
        "dataset",
        "dataset_why",
        "peak_memory_bytes",
    } <= summary.keys()

    tensors, header = checkpoint(out)
    assert header["config"] == config and header["position"]["epoch"] == 2 and header["position"]["step"] == 0
    assert tensors.keys() == {"parameters", "running", "batches", "optimizer.momentum"}
    assert (out / "checkpoint.safetensors").stat().st_size < 8192

    said, progress = capfd.readouterr()
    assert (
        said.count("\n") == 1
        and f"{summary['test_accuracy']:.4f}" in said
        and "digits" in said
        and str(out) in said
    )
    heads = [line.split()[0] for line in progress.splitlines()]
    assert heads == ["device", "engine", "data", "network", "recipe", "plan", "epoch", "epoch"]


def test_the_checkpoint_is_the_trained_model(finished):
    model, drawn = load(finished), FastBNOnlyResNet(8, width=4)
    for (name, p), (_, start) in zip(model.named_parameters(), drawn.named_parameters(), strict=True):
        assert torch.equal(p, start) is not p.requires_grad, name
    assert model.bn1.num_batches_tracked == 2 * STEPS


def test_a_folder_that_holds_a_run_is_refused(run, capfd):
    before = contents(run)
    refused(train(run), capfd, str(run), "--resume", "--out")
    assert contents(run) == before


def test_resuming_where_nothing_is_saved_starts_afresh(finished, tmp_path, capfd):
    assert train(tmp_path / "new", "--resume") == 0
    assert "nothing saved" in capfd.readouterr().err.splitlines()[0]
    assert_same_run(tmp_path / "new", finished)


def test_resuming_a_finished_run_changes_nothing(run, finished, capfd):
    assert train(run, "--resume") == 0
    out, err = capfd.readouterr()
    assert "test accuracy" in out and "resuming" in err and "epoch 1" not in err
    assert_same_run(run, finished)
    assert (run / "checkpoint.safetensors").read_bytes() == (finished / "checkpoint.safetensors").read_bytes()


def test_resuming_with_more_epochs_is_a_run_of_that_many(run, tmp_path):
    assert train(run, "--resume", epochs=4) == 0
    assert train(tmp_path / "whole", "--milestones", "1", epochs=4) == 0
    assert len(metrics(run)) == 4
    assert_same_run(run, tmp_path / "whole")


def test_fewer_epochs_than_were_done_are_told_as_done(run, capfd):
    assert train(run, "--resume", epochs=1) == 0
    assert "after 2 epochs" in capfd.readouterr().out


def test_another_config_is_refused_with_what_differs(run, capfd):
    before = contents(run)
    err = refused(train(run, "--resume", "--lr", "0.2", "--seed", "5", "--width", "8"), capfd, "--out")
    for difference in ("lr: saved 0.1, asked 0.2", "seed: saved 0, asked 5", "width: saved 4, asked 8"):
        assert difference in err
    assert "batch_size" not in err and "epochs" not in err
    assert contents(run) == before


def test_two_runs_in_one_folder_at_once_are_refused(run, capfd):
    before = contents(run)
    with open(run / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(train(run, "--resume"), capfd, "in use by another run", "--out")
    assert contents(run) == before
    assert train(run, "--resume") == 0  # a lock is gone with its holder


def test_the_default_folder_is_named_for_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "--epochs", "1", "--seed", "2", "--train", "gamma"]) == 0
    assert (tmp_path / "runs" / "resnet8-digits-gamma-s2-batch24-width4" / "summary.json").exists()
    assert main([*TINY, "--epochs", "1", "--seed", "2", "--train", "gamma", "--resume"]) == 0


@pytest.mark.parametrize("size", ["24", "100000"])
def test_explain_says_the_plan_and_writes_nothing(tmp_path, monkeypatch, capfd, size):
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "--explain", "--batch-size", size]) == 0
    out, err = capfd.readouterr()
    assert err == "" and list(tmp_path.iterdir()) == []
    for said in (f"engine    {AUTO}", "digits: 64", "168 of 5,214", f"batch {size}", "fused 0", "stock"):
        assert said in out


@pytest.mark.parametrize(
    "names, engine, some",
    [("all", "auto", 5214), ("bn+output", "reference", 338), ("output", "reference", 170)],
)
def test_what_trains_can_be_chosen(tmp_path, names, engine, some):
    assert train(tmp_path, "--train", names, "--engine", engine) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["trained_parameters"], summary["engine"]) == (some, "stock" if names == "all" else engine)
    model, drawn = load(tmp_path), FastBNOnlyResNet(8, width=4)
    moved = sum(
        p.numel()
        for p, start in zip(model.parameters(), drawn.parameters(), strict=True)
        if not torch.equal(p, start)
    )
    assert moved == some


def test_validation_keeps_the_best_epoch(tmp_path):
    assert train(tmp_path, "--val", "16", epochs=4) == 0
    lines = metrics(tmp_path)
    assert all(line.keys() == LINE | {"val_loss", "val_accuracy"} for line in lines)
    assert lines[0]["step"] == 2  # 48 images in batches of 24
    header = checked_file.read(tmp_path / "best.safetensors")[1]
    best = max(lines, key=lambda line: line["val_accuracy"])
    assert (header["epoch"], header["val_accuracy"]) == (best["epoch"], best["val_accuracy"])
    assert evaluate.main([str(tmp_path / "best.safetensors")]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_accuracy"] == lines[-1]["test_accuracy"]


def test_of_equal_epochs_the_first_is_the_best(tmp_path):
    assert train(tmp_path, "--val", "16", "--bn-stats", "frozen", "--lr", "1e-12", epochs=3) == 0
    assert len({line["val_accuracy"] for line in metrics(tmp_path)}) == 1
    assert checked_file.read(tmp_path / "best.safetensors")[1]["epoch"] == 0


def test_without_validation_there_is_no_best(finished):
    assert not (finished / "best.safetensors").exists()


def test_weights_from_a_file(tmp_path, capfd):
    torch.save(network(seed=4).state_dict(), tmp_path / "w.pth")
    assert train(tmp_path / "run", "--weights", str(tmp_path / "w.pth")) == 0
    assert torch.equal(load(tmp_path / "run").conv1.weight, network(seed=4).conv1.weight)


DAMAGE = {
    "config.json cut": ("config.json", lambda content: content[: len(content) // 2]),
    "config.json a list": ("config.json", lambda content: b"[]"),
    "config.json not text": ("config.json", lambda content: b"\xff\xfe{"),
    "config.json gone": ("config.json", lambda content: None),
    "checkpoint cut": ("checkpoint.safetensors", lambda content: content[:-1]),
    "checkpoint altered": ("checkpoint.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    "checkpoint empty": ("checkpoint.safetensors", lambda content: b""),
    "metrics gone": ("metrics.jsonl", lambda content: None),
    "metrics short": ("metrics.jsonl", lambda content: content.splitlines(True)[0]),
    "metrics altered": ("metrics.jsonl", lambda content: b"x" + content),
    "metrics not objects": ("metrics.jsonl", lambda content: b"[1]\n2\n"),
    "metrics not text": ("metrics.jsonl", lambda content: b"\xff" + content),
}


@pytest.mark.parametrize("name, alter", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_refused_and_left_alone(run, capfd, name, alter):
    content = alter((run / name).read_bytes())
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    before = contents(run)
    assert train(run, "--resume", epochs=3) == 2
    out, err = capfd.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and last.startswith("fastbn: error: ") and name in last and "Traceback" not in err
    assert {k: v for k, v in contents(run).items() if k != "config.json"} == {
        k: v for k, v in before.items() if k != "config.json"
    }
    if name == "config.json":
        assert contents(run) == before


def test_a_checkpoint_that_save_wrote_is_no_run_to_resume(tmp_path, capfd, finished):
    shutil.copytree(finished, tmp_path / "run")
    tensors, header = checkpoint(finished)
    del header["position"]
    checked_file.write(tmp_path / "run" / "checkpoint.safetensors", tensors, header)
    assert train(tmp_path / "run", "--resume") == 2
    assert "no run to resume" in capfd.readouterr().err
