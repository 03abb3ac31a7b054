"""python -m fastbn.evaluate: a run's own accuracy again, from its few KB."""

import json

import pytest
import runs
import safetensors.torch
from runs import metrics, network, train

from fastbn.evaluate import main
from fastbn.training.checkpoint import save

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluate") / "run"
    assert train(out) == 0
    return out


def refused(arguments, capfd, *patterns):
    runs.refused(main([str(argument) for argument in arguments]), capfd, *patterns)


@pytest.mark.parametrize("engine", ["auto", "stock"])
@pytest.mark.parametrize("target", ["", "checkpoint.safetensors"])
def test_a_run_s_own_accuracy(run, capfd, engine, target):
    assert main([str(run / target), "--engine", engine]) == 0
    out, err = capfd.readouterr()
    last = metrics(run)[-1]
    assert err == "" and out.count("\n") == 1
    assert (
        f"accuracy {last['test_accuracy']:.4f}, loss {last['test_loss']:.4f}, 32 images" in out
        and "digits" in out
    )


def test_the_number_of_images_can_be_another(run, capfd):
    assert main([str(run), "--limit-test", "20"]) == 0
    assert "20 images" in capfd.readouterr().out
    assert main([str(run), "--limit-test", "1000"]) == 0
    assert "360 images" in capfd.readouterr().out


def test_a_file_that_save_wrote(tmp_path, capfd):
    path = tmp_path / "model.safetensors"
    save(network(), path)
    refused([path], capfd, str(path), "--dataset")
    assert main([str(path), "--dataset", "digits", "--limit-test", "10"]) == 0
    assert "ResNet-8 on digits" in capfd.readouterr().out


def test_weights_that_have_moved(tmp_path, capfd):
    weights = tmp_path / "w.safetensors"
    safetensors.torch.save_file(network(seed=2).state_dict(), weights)
    assert train(tmp_path / "run", "--weights", str(weights)) == 0
    moved = weights.rename(tmp_path / "moved.safetensors")
    capfd.readouterr()
    refused([tmp_path / "run"], capfd, str(weights), "--weights")
    assert main([str(tmp_path / "run"), "--weights", str(moved)]) == 0
    accuracy = json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"]
    assert f"accuracy {accuracy:.4f}" in capfd.readouterr().out


def test_what_is_no_run_is_refused(tmp_path, run, capfd):
    refused([tmp_path / "missing"], capfd, "missing", "no such file", "name a run's folder")
    (tmp_path / "runs" / "resnet8").mkdir(parents=True)
    for wrong in ("runs/resnet9", "runs/restnet8/checkpoint.safetensors", "rans/resnet8"):
        near = tmp_path / "runs" / ("" if wrong[1] == "a" else "resnet8")
        refused([tmp_path / wrong], capfd, "no such file", f"nearest: {near}")
    refused([tmp_path], capfd, str(tmp_path), "no such file")
    (tmp_path / "text").write_text("not a checkpoint")
    refused([tmp_path / "text"], capfd, "text")
    content = (run / "checkpoint.safetensors").read_bytes()
    (tmp_path / "cut").write_bytes(content[:-100])
    refused([tmp_path / "cut"], capfd, "cut", "truncated")
    (tmp_path / "altered").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused([tmp_path / "altered"], capfd, "altered", "damaged")


def test_wrong_arguments(run, tmp_path, capfd, no_gpu):
    refused([], capfd, "run")
    refused([run, "--limit-test", "0"], capfd, "0 images")
    refused([run, "--dataset", "cifar10", "--data-dir", tmp_path], capfd, "CIFAR-10", str(tmp_path))
    refused([run, "--engine", "triton"], capfd, "triton")
    refused([run, "--device", "cuda"], capfd, "cuda", "--device cpu")
    save(network(num_classes=7), tmp_path / "seven.safetensors")
    refused([tmp_path / "seven.safetensors", "--dataset", "digits"], capfd, "10 classes", "network 7")
