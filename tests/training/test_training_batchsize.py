"""--batch-size auto: what is chosen of what was measured, and what follows for the learning rate."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from nets import resnet

from fastbn import fuse
from fastbn.data.feed import Resident
from fastbn.data.images import Images
from fastbn.errors import UsageError
from fastbn.recipe import Recipe
from fastbn.run import resolve
from fastbn.train import main
from fastbn.training import batch_size

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_smallest_within_five_percent_of_the_best():
    assert batch_size.choose({32: 10.0, 64: 94.9, 128: 95.1, 256: 100.0}) == 128
    assert batch_size.choose({32: 100.0, 64: 94.0}) == 32


def measured(monkeypatch, rates, samples=1000, memory=None):
    """Return the choice where these are the rates, and the sizes that were asked about."""
    asked = []

    def rate(model, source, recipe):
        asked.append(recipe.batch_size)
        return rates.get(recipe.batch_size, 1.0)

    monkeypatch.setattr(batch_size, "_images_per_second", rate)
    source = Resident(Images(torch.zeros(samples, 4, 4, 3, dtype=torch.uint8), torch.arange(samples) % 10))
    return batch_size.fastest(
        resnet(8), source, functools.partial(Recipe(batch_size="auto", epochs=3).resolved, 3)
    ), asked


def test_it_ends_where_larger_is_no_faster(monkeypatch):
    assert measured(monkeypatch, {32: 50.0, 64: 100.0, 128: 99.0, 256: 90.0}) == (64, [32, 64, 128, 256])


def test_no_batch_is_larger_than_the_set(monkeypatch):
    assert measured(monkeypatch, {32: 1.0, 64: 2.0, 128: 4.0}, samples=100) == (64, [32, 64])


def test_the_model_is_as_it_was():
    draw = torch.Generator().manual_seed(0)
    source = Resident(
        Images(torch.randint(0, 256, (64, 8, 8, 3), dtype=torch.uint8, generator=draw), torch.arange(64) % 10)
    )
    model = fuse(resnet(8).float().train(), "native")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    said = []
    chosen = batch_size.fastest(
        model, source, functools.partial(Recipe(batch_size="auto", epochs=1).resolved, 1), said.append
    )
    assert chosen in (32, 64) and f"{chosen}: the smallest" in said[0]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "lr", "warmup"),
    [
        ({}, 0.8, 5),  # linear from 0.1 at 128
        ({"lr": 0.3}, 0.3, 0),
        ({"warmup_epochs": 2}, 0.8, 2),
        ({"optimizer": "adam"}, 0.001 * 8**0.5, 0),
    ],
    ids=str,
)
def test_the_learning_rate_follows(settings, lr, warmup):
    found = Recipe(batch_size="auto", **settings).resolved(160, batch=1024)
    assert (found.batch_size, found.lr, found.warmup_epochs) == (1024, pytest.approx(lr), warmup)


def test_a_number_scales_nothing_and_a_data_set_has_its_own_recipe():
    assert Recipe(batch_size=1024).resolved(160).lr == 0.1
    usual = {"batch_size": 1024, "lr": 0.4, "milestones": (30, 60, 80), "warmup_epochs": 5}
    found = Recipe().resolved(90, usual=usual)
    assert (found.batch_size, found.lr, found.milestones, found.warmup_epochs) == (1024, 0.4, (30, 60, 80), 5)
    assert Recipe(epochs=10).resolved(90, usual=usual).milestones == (5, 7)
    assert Recipe(batch_size="auto").resolved(90, usual=usual, batch=512).lr == pytest.approx(0.2)


@pytest.mark.parametrize("value", ["automatic", "0", "1.5"])
def test_another_word_is_refused(value, capsys):
    assert main(["--depth", "8", "--batch-size", value]) == 2
    assert "batch" in capsys.readouterr().err


def test_a_run_writes_what_was_found_and_its_resumption_measures_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(resolve, "fastest", lambda model, source, recipe, say: 64)
    arguments = [
        "--depth",
        "8",
        "--width",
        "4",
        "--dataset",
        "digits",
        "--limit-train",
        "96",
        "--limit-test",
        "32",
        "--batch-size",
        "auto",
    ]
    arguments += ["--out", str(tmp_path / "run")]
    assert main([*arguments, "--epochs", "2"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["batch_size"], config["lr"], config["warmup_epochs"]) == (64, 0.05, 0)

    def refuse(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(resolve, "fastest", refuse)
    assert main([*arguments, "--epochs", "3", "--resume"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["batch_size"] == 64
    capsys.readouterr()


def test_slices_are_of_two_at_least():
    with pytest.raises(UsageError, match="bn_batch must be an integer of at least 2, got 1"):
        Recipe(bn_batch=1)
