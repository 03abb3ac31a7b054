"""How long the experiments would take: estimated from what is on record; quick cuts that take minutes."""

import dataclasses
import json
import statistics

import pytest
import torch
from runs import REPOSITORY
from torch import nn

from bench.records.rows import load
from bench.report.compare import cases
from fastbn.experiments.__main__ import main
from fastbn.experiments.hours import estimate
from fastbn.experiments.hours.estimate import Rate
from fastbn.experiments.listing import show
from fastbn.experiments.preset import Line
from fastbn.experiments.presets import PRESETS
from fastbn.models.families import resolve as resolve_spec
from fastbn.models.network import network

RATE = Rate(100e9)


def test_hours_are_estimated_from_what_is_on_record():
    """The shares that steps take of a matrix product are those of the record, and so are the tweets."""
    records = load([REPOSITORY / "bench/results/bench-amd-epyc-avx-512-2-threads-2026-11-30.json"])
    product = records[0].machine["matmul_flops_per_second"]
    found = {"fastbn": [], "bn": []}
    for case in cases(records, "step"):
        flops = next(row.flops for row in case.rows if row.flops)
        if case.name.endswith("fp32"):
            for kind, own in found.items():
                own.append(flops / case.best(kind).seconds / product)
    shares = [statistics.median(own) for own in found.values()]
    assert [estimate.SHARES["fused"], estimate.SHARES["stock"]] == pytest.approx(shares, abs=0.005)
    assert pytest.approx(product, rel=0.01) == estimate.RECORD_FLOPS
    for train, each in estimate.TWEETS.items():
        run = json.loads(next(REPOSITORY.glob(f"bench/results/run-torri-lstm-{train}-s0-*.json")).read_text())
        assert each == round(statistics.median(epoch["images_per_second"] for epoch in run["epochs"]))


@pytest.mark.parametrize(
    "words, side",
    [
        ({"depth": 8}, 32),
        ({"depth": 20, "width": 8}, 32),
        ({"depth": 18, "family": "imagenet"}, 224),
        ({"depth": 50, "family": "imagenet"}, 33),
        ({"depth": 50, "family": "imagenet", "stride_on": "1x1"}, 32),
        ({"depth": 20, "family": "wandb"}, 32),
    ],
)
def test_multiplications_are_those_of_the_network(words, side):
    spec, counted = resolve_spec(num_classes=10, **words), []
    with torch.device("meta"):
        model = network(spec, "stock")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, _, y: counted.append(y.numel() * m.weight[0].numel()))
    model.eval()(torch.empty(1, 3, side, side, device="meta"))
    assert estimate.multiplications(spec, side) == sum(counted)


def test_an_estimate():
    """2 passes over 50,000 images and one over 10,000, twice as long on half the machine."""
    line = Line("bn", {"dataset": "cifar10", "depth": 14, "train": "bn", "epochs": 2})
    spec = resolve_spec(14)
    seconds = 2 * estimate.multiplications(spec, 32) * 110_000 * 2 / (estimate.SHARES["fused"] * 100e9)
    assert estimate.line_hours(line, RATE) == pytest.approx(seconds / 3600)
    assert estimate.line_hours(line, Rate(50e9)) == pytest.approx(2 * seconds / 3600)
    whole = dataclasses.replace(line, settings={**line.settings, "train": "all"})
    assert estimate.line_hours(whole, RATE) > 2.5 * estimate.line_hours(line, RATE)
    assert estimate.line_hours(Line("mlp", {"family": "mlp", "dataset": "cifar10"}), RATE) is None
    said = [estimate.about(hours) for hours in (None, 0, 0.1, 1.7, 20.2, 50, 24_321)]
    assert said == ["no estimate", "moments", "~6 min", "~100 min", "~20 hours", "~2 days", "~1,000 days"]
    assert "busy" in estimate.source(Rate(1e9, 3.0)) and "busy" not in estimate.source(RATE)


def test_a_quick_cut_takes_minutes_or_there_is_none(capfd):
    """Under ten on the machine of the record; what has none says why, in a line."""
    for name, preset in PRESETS.items():
        if isinstance(preset.quick, str):
            assert main(["run", name, "--quick"]) == 2
            assert capfd.readouterr().err.startswith(f"fastbn: error: {name} has no --quick: {preset.quick}")
            assert f"--quick: none, {preset.quick}"[:60] in show(preset, RATE)
        elif name != "torri-mlp":
            assert (estimate.hours(preset, True, Rate(estimate.RECORD_FLOPS)) or 0) < 1 / 6, name
