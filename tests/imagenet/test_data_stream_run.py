"""A run on a streamed set from the command line: trained, stopped in mid-epoch, resumed bit for bit,
tested again."""

from __future__ import annotations

import contextlib
import signal

import pytest
import torch
from data_stream import folders, shards
from runs import assert_same_run, metrics

from fastbn import evaluate, fit
from fastbn.data import Stream, read_imagenet
from fastbn.errors import Stopped, UsageError
from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.train import main
from fastbn.training import fit as fit_module

SIZES = [
    "--depth",
    "18",
    "--width",
    "2",
    "--dataset",
    "imagenet",
    "--batch-size",
    "12",
    "--epochs",
    "2",
    "--engine",
    "reference",
]
STEPS = 3  # an epoch: 12, 12 and a ragged 6


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory, one_thread):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        # decoded here: starting processes is tested elsewhere
        patch.setattr("fastbn.data.imagenet.stream.cores", lambda: 0)
        patch.setattr("fastbn.run.data.IMAGE_SIZE", {"imagenet": 32})
        yield


@contextlib.contextmanager
def stopped_after(steps):
    """A request to stop that comes with so many steps."""

    class Request:
        asked = 0

        @property
        def signal(self):
            self.asked += 1
            return signal.SIGTERM if self.asked > steps else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "stop_request", lambda: contextlib.nullcontext(Request()))
        yield


@pytest.mark.parametrize(("make", "layout"), [(folders, "class folders"), (shards, "WebDataset shards")])
def test_a_run_that_is_stopped_and_resumed_equals_one_that_is_not(make, layout, tmp_path, capsys):
    where = ["--data-dir", str(make(tmp_path / "data"))]
    assert main([*SIZES, *where, "--out", str(tmp_path / "whole")]) == 0
    err = capsys.readouterr().err
    assert f"data      imagenet: 30 to train on, 11 to test ({layout} in {tmp_path}/data)" in err
    assert [line["step"] for line in metrics(tmp_path / "whole")] == [STEPS, 2 * STEPS]
    # 1: in an epoch's middle; 3: after its last step
    with stopped_after(1):
        assert main([*SIZES, *where, "--out", str(tmp_path / "part")]) == 143
    with stopped_after(STEPS):
        assert main([*SIZES, *where, "--out", str(tmp_path / "part"), "--resume"]) == 143
    assert main(["--resume", "--out", str(tmp_path / "part"), *where]) == 0
    assert_same_run(tmp_path / "part", tmp_path / "whole")
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "whole"), *where]) == 0
    assert f"test accuracy {metrics(tmp_path / 'whole')[-1]['test_accuracy']:.4f}" in capsys.readouterr().out


def test_its_limits_and_its_validation_set(tmp_path, capsys):
    more = [
        "--limit-train",
        "20",
        "--limit-test",
        "5",
        "--val",
        "4",
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*SIZES, "--data-dir", str(folders(tmp_path / "data")), *more]) == 0
    (line,) = metrics(tmp_path / "out")
    # 16 images at 12
    assert line["step"] == 2 and {"val_accuracy", "test_accuracy", "train_accuracy"} <= line.keys()


def test_imagenet_implies_its_family(tmp_path, capsys):
    where = ["--dataset", "imagenet", "--data-dir", str(folders(tmp_path))]
    assert main(["--depth", "50", *where, "--explain"]) == 0
    assert "ResNet-50 (imagenet)" in capsys.readouterr().out
    assert main(["--depth", "56", *where, "--explain"]) == 2
    assert "56" in capsys.readouterr().err


def test_no_imagenet_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main([*SIZES, "--data-dir", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.count("\n") == 1
        and err.startswith(f"fastbn: error: ImageNet is not in {tmp_path}/nowhere: neither class")
    )


def test_fit_takes_streams(tmp_path):
    train, test = read_imagenet(folders(tmp_path), 32)
    assert isinstance(train, Stream)
    model = FastBNOnlyResNet(18, 3, width=2, engine="reference")
    (line,) = fit(model, train, test, epochs=1, batch_size=12, progress=False)
    assert line["step"] == STEPS and 0 <= line["test_accuracy"] <= 1


def test_a_stop_in_the_middle_of_an_epoch_leaves_no_pool_behind(tmp_path):
    train, _ = read_imagenet(folders(tmp_path), 32)
    with stopped_after(1), pytest.raises(Stopped):
        fit(
            FastBNOnlyResNet(18, 3, width=2, engine="reference"),
            train,
            epochs=1,
            batch_size=12,
            progress=False,
        )
    with pytest.raises(UsageError, match=r"train must be"):
        fit(FastBNOnlyResNet(18, 3, width=2, engine="reference"), torch.zeros(3), epochs=1)
