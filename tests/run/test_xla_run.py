"""--device xla, on torch_xla's CPU device: held to the CPU's own results, resumed bit for bit, compiled
once. Run by .ci/xla."""

import json
import re
import signal

import pytest
import torch
from data_stream import folders
from ranks import wait_for
from runs import TINY, assert_same_run, checkpoint, digits, metrics, network, start

from fastbn import evaluate, explain, fit, fuse
from fastbn.data import read_imagenet
from fastbn.data.feed import Resident
from fastbn.machine import xla
from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.recipe import Recipe
from fastbn.train import main
from fastbn.training.distributed import xla as xla_ranks
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals

pytestmark = pytest.mark.xla

DEEP = [
    "--depth",
    "14",
    "--dataset",
    "digits",
    "--limit-train",
    "320",
    "--limit-test",
    "600",
    "--epochs",
    "2",
    "--device",
    "xla",
]
BATCH = 24  # 64 images make 24, 24 and a ragged 16
ADAM = {"optimizer": "adam", "schedule": "cosine"}


@pytest.fixture(scope="module", autouse=True)
def known():
    """Know "xla" as a device, as torch does once torch_xla is imported."""
    return xla.device()


def trained(device, engine="auto", epochs=2, train=64, width=4, **settings):
    """Return a tiny fit's lines. width: one that no other test has, where graphs are to be compiled."""
    model = network(width=width, engine="stock").to(device)
    fuse(model, engine)
    return fit(model, *digits(train, 32), epochs=epochs, batch_size=BATCH, progress=False, **settings)


def close(found, expected, tolerance):
    for line, other in zip(found, expected, strict=True):
        for name in ("train_loss", "test_loss"):
            assert line[name] == pytest.approx(other[name], abs=tolerance), (name, line["epoch"])


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """The folder of a run of ResNet-14 that nothing happened to."""
    out = tmp_path_factory.mktemp("deep") / "run"
    assert main([*DEEP, "--out", str(out)]) == 0
    return out


def test_a_run_names_its_device(deep):
    config, summary = (json.loads((deep / name).read_text()) for name in ("config.json", "summary.json"))
    assert (config["device"], config["engine"], config["precision"]) == ("xla", "stock", "fp32")
    assert summary["device"].startswith("XLA: CPU") and "torch_xla" in summary["device"]
    assert [line["step"] for line in metrics(deep)] == [3, 6]


def test_killed_and_resumed_equals_uninterrupted(deep, tmp_path):
    out = tmp_path / "run"
    running = start(*DEEP, "--out", out)
    wait_for(lambda: (out / "checkpoint.safetensors").exists(), running, seconds=300)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    assert running.returncode == -9 and checkpoint(out)[1]["position"]["epoch"] == 1
    assert main([*DEEP, "--resume", "--out", str(out)]) == 0
    assert_same_run(out, deep)


@pytest.mark.parametrize("optimizer", [[], ["--optimizer", "adam", "--lr", "0.01"]], ids=["sgd", "adam"])
def test_a_signal_in_an_epoch_and_resumed(tmp_path, monkeypatch, optimizer):
    arguments = [*TINY, "--device", "xla", "--epochs", "2", *optimizer]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    steps, original = [], TrainingStep.__call__

    def stopping(self, *given):
        steps.append(1)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGTERM)
        original(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingStep, "__call__", stopping)
        assert main([*arguments, "--out", str(tmp_path / "cut")]) == 143
    assert checkpoint(tmp_path / "cut")[1]["position"]["step"] == 2
    assert main([*arguments, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_checkpoint_is_read_on_the_other_device(deep, tmp_path, capfd):
    """Written on XLA and tested on the CPU, and the other way round."""
    there = tmp_path / "cpu"
    assert main([*DEEP, "--device", "cpu", "--engine", "stock", "--out", str(there)]) == 0
    for folder, device in ((deep, "cpu"), (there, "xla")):
        capfd.readouterr()
        assert evaluate.main([str(folder), "--device", device]) == 0
        accuracy, loss = re.search(r"test accuracy ([\d.]+), loss ([\d.]+)", capfd.readouterr().out).groups()
        written = metrics(folder)[-1]
        assert float(loss) == pytest.approx(written["test_loss"], abs=2e-4)  # it is printed to 4 digits
        # two images on the edge
        assert float(accuracy) == pytest.approx(written["test_accuracy"], abs=2 / 600)


def test_the_first_step_s_loss_is_the_cpu_s():
    found, expected = (
        trained(device, engine, 1, BATCH) for device, engine in (("xla", "auto"), ("cpu", "stock"))
    )
    assert found[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], abs=1e-5)


def test_two_epochs_are_the_cpu_s():
    close(trained("xla", lr=0.01), trained("cpu", "stock", lr=0.01), 1e-3)


def test_bf16_is_near_fp32_and_another():
    found, expected = trained("xla", lr=0.01, precision="bf16"), trained("xla", lr=0.01)
    close(found, expected, 0.05)
    assert found[0]["train_loss"] != expected[0]["train_loss"]


@pytest.mark.parametrize(
    "width, settings",
    [(6, {"lr": 0.02}), (7, {"lr": 1.0, "warmup_epochs": 2, **ADAM})],
    ids=["sgd", "adam"],
)
def test_nothing_is_compiled_after_the_first_epoch(width, settings):
    """The learning rate changes nothing: with warm-up it becomes 1, which could be a constant of the
    graph."""
    before, counts = xla.compilations(), []
    lines = trained(
        "xla", epochs=4, width=width, log=lambda line: counts.append(xla.compilations()), **settings
    )
    assert len({line["lr"] for line in lines}) > 2
    assert counts[0] > before and counts == counts[:1] * 4


def test_one_graph_a_batch_size():
    """Width 5: graphs that no other test has compiled."""
    images = digits(64)[0].to("xla")
    step = TrainingStep(
        network(width=5, engine="stock").to("xla").train(),
        Resident(images),
        Recipe(batch_size=BATCH).resolved(2),
    )
    xla.carry_out()
    counts = []
    for epoch in range(2):
        totals = Totals.zero(images.device)
        step.feed.begin(0, epoch)
        for number, inputs in enumerate(step.feed.batches(BATCH)):
            before = xla.compilations()
            step(inputs, 0.1 / (1 + number), totals)
            counts.append(xla.compilations() - before)
    assert counts == [1, 0, 1, 0, 0, 0]


def test_images_of_differing_sizes_compile_once(tmp_path, monkeypatch):
    """Streamed from the disk: each batch has another number of bytes."""
    monkeypatch.setattr("fastbn.data.imagenet.stream.cores", lambda: 0)  # decoded in this process
    train, test = read_imagenet(folders(tmp_path), 32)
    model = FastBNOnlyResNet(18, num_classes=len(train.classes), width=2, engine="stock").to("xla")
    counts = []
    fit(
        model,
        train,
        test,
        epochs=2,
        batch_size=12,
        progress=False,
        log=lambda line: counts.append(xla.compilations()),
    )
    assert counts[0] == counts[1]


def test_a_lost_loss_is_told(tmp_path, capfd):
    assert (
        main([*TINY, "--device", "xla", "--epochs", "1", "--lr", "1e30", "--out", str(tmp_path / "run")]) == 3
    )
    assert "diverged" in capfd.readouterr().err
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_the_ranks_gradients_are_one_all_reduce(monkeypatch):
    """The step's own graph has it, as XLA is given it. No chips take part: torch_xla's CPU devices cannot
    reach each other."""
    monkeypatch.setenv("XLA_ALWAYS_ALLREDUCE", "1")
    import torch_xla

    images = digits(BATCH)[0].to("xla")
    model = network(width=3, engine="stock").to("xla").train()
    step = TrainingStep(model, Resident(images), Recipe(batch_size=BATCH).resolved(2), xla_ranks.Chips(0, 2))
    step.feed.begin(0, 0)
    (inputs,) = step.feed.batches(BATCH, 0, (0, 2))
    step.exchange.begin(len(inputs[0]), len(inputs[0]), BATCH, None)
    totals, rate = Totals.zero(images.device), xla.number(0.1, torch.float64, images.device)
    xla.carry_out()
    step._compute(inputs, rate, totals)
    graph = torch_xla._XLAC._get_xla_tensors_hlo(
        [step.flat.vector, totals.loss, *step.optimizer.state.values()]
    )
    assert len(re.findall(r" all-reduce\(", graph)) == 1
    assert f"f32[{len(step.flat.vector) + 4}]" in re.search(r".* all-reduce\(.*", graph)[0]
    xla.carry_out()


def test_the_launcher_trains_on_the_one_device_there_is(tmp_path):
    running = start(
        *TINY, "--epochs", "1", "--device", "xla", "--out", tmp_path / "run", module="fastbn.train_xla"
    )
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0 and "test accuracy" in out, err
    refused = start(
        *TINY, "--epochs", "1", "--device", "xla", "--out", tmp_path / "run", module="fastbn.train_xla"
    )
    assert "--resume" in refused.communicate(timeout=300)[1] and refused.returncode == 2


def test_fp32_asks_for_whole_products():
    """A TPU would multiply float32 in bfloat16."""
    import torch_xla

    for exact, word in ((True, "operand_precision={highest,highest}"), (False, "")):
        xla.exact(exact)
        y = torch.nn.functional.conv2d(
            torch.ones(1, 3, 4, 4, device="xla"), torch.ones(2, 3, 3, 3, device="xla")
        )
        graph = torch_xla._XLAC._get_xla_tensors_hlo([y])
        assert ("highest" in graph) == exact and word in graph


def test_the_oldest_torch_fuses_whole_networks():
    """This environment holds the oldest PyTorch that fastbn supports."""
    done, every = explain(FastBNOnlyResNet(8)).convolutions
    assert done == every == 9
