"""fastbn.fit with what a caller brings: a loss, an optimizer, an augmentation, callbacks, a folder; and
evaluate and predict."""

import functools
import inspect
import json

import pytest
import torch
import torch.nn.functional as F
from runs import STEPS, assert_same_run, at_call, digits, metrics, network
from torch import nn

import fastbn
from fastbn import analyze
from fastbn.data.augment import batch
from fastbn.errors import Diverged, Stopped, UsageError
from fastbn.evaluate import main as evaluate_main
from fastbn.recipe import Recipe
from fastbn.trainable import freeze, trainable
from fastbn.training.state.custom import Custom
from fastbn.training.step import TrainingStep

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN, TEST = digits()
stock = functools.partial(
    network, engine="stock"
)  # what is the caller's is no engine's, and this one is made at once


def fit(model, **settings):
    given = {"epochs": 2, "batch_size": 24, "progress": False, **settings}
    return fastbn.fit(model, TRAIN, given.pop("test", None), **given)


def trained(model):
    return torch.cat([p.detach().flatten() for _, p in trainable(model)])


def parameters(model):
    return [p for p in model.parameters() if p.requires_grad]


def test_the_signature_lists_every_setting_with_its_default():
    shown = inspect.signature(fastbn.fit).parameters
    usual = Recipe()
    for name in vars(usual):
        assert shown[name].default == getattr(usual, name) and shown[name].annotation, name
    assert {"loss", "augment", "callbacks", "out", "resume"} <= shown.keys()
    assert all(f"{name}" in fastbn.fit.__doc__ for name in ("optimizer", "callbacks", "resume", "augment"))


@pytest.mark.parametrize("kind", [TypeError, UsageError])
@pytest.mark.parametrize(
    "wrong, near",
    [("epoch", "epochs"), ("batchsize", "batch_size"), ("learning", "warmup|lr"), ("cb", "callbacks")],
)
def test_a_misspelled_setting_names_the_nearest(kind, wrong, near):
    with pytest.raises(kind, match=rf"fit has no setting '{wrong}'.*({near})"):
        fit(stock(), **{wrong: 1})
    with pytest.raises(kind) as told:
        fit(stock(), zzz=1)
    assert "epochs" in str(told.value) and "unknown" not in str(told.value)
    if near == "epochs":
        with pytest.raises(kind, match="fit_replicas has no setting 'epoch'; nearest: epochs"):
            fastbn.fit_replicas([stock()], TRAIN, epoch=1)


MADE = {
    "sgd": ("sgd", functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4), 0.1),
    "adam": ("adam", functools.partial(torch.optim.Adam, weight_decay=1e-4), 1e-3),
}


@pytest.mark.parametrize("as_instance", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_torch_s_optimizers_do_what_fastbn_s_do(name, as_instance):
    """The same recipe by torch.optim, parameter by parameter: equal but for the order of float32
    operations."""
    word, make, lr = MADE[name]
    own, theirs = stock(), stock()
    start = trained(own)
    given = make(parameters(theirs), lr=lr) if as_instance else make
    history = fit(theirs, optimizer=given, schedule="cosine", **({} if as_instance else {"lr": lr}))
    expected = fit(own, optimizer=word, lr=lr, schedule="cosine")
    assert [line["lr"] for line in history] == pytest.approx([line["lr"] for line in expected])
    moved = (trained(own) - start).abs().max()
    assert moved > 0 and (trained(own) - trained(theirs)).abs().max() < 1e-3 * moved
    if as_instance:
        assert given.param_groups[0]["lr"] == lr  # given back as it came


def test_an_optimizer_of_another_kind_trains():
    model = stock()
    start = trained(model)
    (line,) = fit(model, optimizer=torch.optim.AdamW, epochs=1)
    assert line["lr"] == 1e-3 and not torch.equal(trained(model), start)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"optimizer": "adamw"}, "optimizer must be one of sgd, adam, got 'adamw'"),
        ({"optimizer": 3}, "sgd, adam, a torch.optim.Optimizer or make one"),
        ({"optimizer": torch.optim.AdamW, "momentum": 0.5}, "momentum is the optimizer's own"),
        (
            {"optimizer": lambda parameters: 3},
            "must be a torch.optim.Optimizer, or make one of parameters, got int",
        ),
        (
            {"optimizer": lambda parameters: torch.optim.SGD(parameters[:1], lr=0.1)},
            "1 parameters that train",
        ),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS can't take a step without a closure"),
        (
            {"loss": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none")},
            r"scalar.*\(24,\)",
        ),
        ({"augment": lambda x: x[:3]}, "as many images as it is given, 24"),
        ({"callbacks": [3]}, "callbacks are called with the model and an epoch's metrics, got int"),
        ({"resume": True}, "give out="),
    ],
)
def test_what_can_t_be_taken_is_one_line(settings, says):
    with pytest.raises(UsageError, match=says) as told:
        fit(stock(), **settings)
    assert "\n" not in str(told.value)


def test_a_loss_of_one_s_own_is_trained_and_tested_by():
    calls = []

    def smooth(logits, labels):
        calls.append(len(labels))
        return F.cross_entropy(logits, labels, label_smoothing=0.5)

    plain, smoothed = stock(), stock()
    fit(plain)
    history = fit(smoothed, loss=smooth, test=TEST)
    assert calls == [24, 24, 16, 32] * 2 and not torch.equal(trained(plain), trained(smoothed))
    again = fastbn.evaluate(smoothed, TEST, loss=smooth)
    assert again["loss"] == pytest.approx(history[-1]["test_loss"]) and again["images"] == 32
    twice = stock()
    fit(twice, loss=lambda logits, labels: F.cross_entropy(logits, labels))
    assert torch.equal(trained(twice), trained(plain))  # the same loss by another name: the same bits


def test_an_augmentation_of_one_s_own_sees_training_batches_alone():
    shapes, start = [], stock()

    def mirrored(x):
        shapes.append(tuple(x.shape))
        return x.flip(3)

    model = stock()
    fit(model, augment=mirrored, test=TEST)
    fit(start)
    assert [shape[0] for shape in shapes] == [24, 24, 16] * 2 and not torch.equal(
        trained(model), trained(start)
    )


def test_a_callback_sees_model_and_metrics_and_can_end_the_training(capfd):
    seen, model = [], stock()

    def stop(given, line):
        assert given is model
        seen.append(line["epoch"])
        return line["epoch"] == 1

    history = fit(model, epochs=5, callbacks=[lambda *_: None, stop], progress=True)
    assert seen == [0, 1] and len(history) == 2
    assert "stopped   after epoch 2, by a callback" in capfd.readouterr().err
    assert len(fit(stock(), callbacks=lambda model, line: False)) == 2


def test_the_plain_way_is_said(capfd):
    fit(stock(), progress=True, epochs=1)
    assert "step " not in capfd.readouterr().err
    fit(stock(), progress=True, epochs=1, optimizer=torch.optim.AdamW, augment=lambda x: x)
    err = capfd.readouterr().err
    assert (
        "step      augment and optimizer of your own: taken the plain way, no CUDA graph, its update" in err
    )


def test_xla_takes_nothing_of_the_caller_s():
    Custom().check(torch.device("xla"))
    with pytest.raises(UsageError, match="augment of your own can't be part of XLA's one graph"):
        Custom(augment=lambda x: x).check(torch.device("xla"))


def test_a_loss_that_is_no_number_moves_nothing():
    model = stock()
    start = trained(model)
    with pytest.raises(Diverged):
        fit(model, loss=lambda logits, labels: logits.mean() * float("nan"), optimizer=torch.optim.AdamW)
    assert torch.equal(trained(model), start)


def test_out_keeps_a_run_and_resume_goes_on_with_it(tmp_path, monkeypatch, capfd):
    whole, part = tmp_path / "whole", tmp_path / "part"
    history = fit(network(), test=TEST, out=whole)
    assert [line["test_accuracy"] for line in metrics(whole)] == [line["test_accuracy"] for line in history]

    def stop():
        raise Stopped(15)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        at_call(patched, TrainingStep, "__call__", STEPS + 1, stop)
        fit(network(), test=TEST, out=part)
    with pytest.raises(UsageError, match="resume=True, or choose another out"):
        fit(network(), test=TEST, out=part)
    with pytest.raises(UsageError, match=r"lr: saved 0\.1, asked 0\.2"):
        fit(network(), test=TEST, out=part, resume=True, lr=0.2)
    assert len(fit(network(), test=TEST, out=part, resume=True)) == 2
    assert_same_run(part, whole)
    summary = json.loads((part / "summary.json").read_text())
    assert summary["test_accuracy"] == history[-1]["test_accuracy"] and summary["epochs"] == 2
    assert evaluate_main([str(part), "--limit-test", "32"]) == 0
    assert f"{history[-1]['test_accuracy']:.4f}" in capfd.readouterr().out
    assert analyze.main([str(part), "--no-data", "-o", str(tmp_path / "x.html")]) == 0


def test_what_no_folder_keeps(tmp_path):
    foreign = freeze(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10)), "bn"
    )
    with pytest.raises(UsageError, match="keeps fastbn's own networks, got Sequential"):
        fit(foreign, out=tmp_path / "run")
    with pytest.raises(UsageError, match="resume restores the state of fastbn's own optimizers"):
        fit(network(), out=tmp_path / "run", resume=True, optimizer=torch.optim.AdamW)
    assert list(tmp_path.iterdir()) == []


def test_evaluate_and_predict():
    model = network()
    fit(model, epochs=1)
    model.train()
    found = fastbn.evaluate(model, TEST)
    assert found.keys() == {"loss", "accuracy", "images"} and model.training
    logits = fastbn.predict(model, TEST, batch_size=5)
    assert logits.shape == (32, 10) and logits.dtype == torch.float32 and model.training
    labels = TEST.labels
    assert (logits.argmax(1) == labels).double().mean().item() == pytest.approx(found["accuracy"])
    assert F.cross_entropy(logits, labels).item() == pytest.approx(found["loss"], rel=1e-5)
    x = batch(TEST, torch.arange(32), None)
    torch.testing.assert_close(fastbn.predict(model, x), logits, rtol=1e-4, atol=1e-5)
    pairs = [(x[:20], labels[:20]), (x[20:], labels[20:])]
    torch.testing.assert_close(fastbn.predict(model, pairs), logits, rtol=1e-4, atol=1e-5)
    assert fastbn.evaluate(model, pairs)["accuracy"] == pytest.approx(found["accuracy"])
    for wrong in (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(0, 3, 32, 32), 5):
        with pytest.raises(UsageError):
            fastbn.predict(model, wrong)
    assert fastbn.evaluate.main  # the command's module all the same
