"""fastbn.fit: what it returns, what it trains, what it leaves as it was."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from fit_sets import TEST, TRAIN, fit, trained
from runs import STEPS, digits, network
from torch import nn

import fastbn
from fastbn.data.augment import batch, draw_epoch
from fastbn.data.feed import Resident
from fastbn.errors import Diverged, UsageError
from fastbn.planning.precision import arithmetic
from fastbn.recipe import Recipe
from fastbn.trainable import freeze, trainable
from fastbn.training.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = {"epoch", "step", "lr", "train_loss", "train_accuracy", "norms"}
MEASURED = {
    "images_per_second",
    "seconds",
    "evaluation_seconds",
    "peak_memory_bytes",
    "planned_memory_bytes",
    "energy_joules",
}


def frozen(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


def running(model):
    return {name: b.clone() for name, b in model.named_buffers()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "held_out, names",
    [
        ({"test": TEST}, ("test",)),
        ({}, ()),
        ({"val": TEST}, ("val",)),
        ({"test": TEST, "val": TRAIN.limit(20)}, ("test", "val")),
    ],
    ids=["test", "none", "val", "both"],
)
def test_history(held_out, names):
    history = fit(network(), TRAIN, lr=0.1, **held_out)
    assert [line["epoch"] for line in history] == [0, 1]
    assert [line["step"] for line in history] == [STEPS, 2 * STEPS]
    assert [line["lr"] for line in history] == pytest.approx([0.1, 0.01])
    for line in history:
        assert line.keys() == COMMON | MEASURED | {
            f"{name}_{what}" for name in names for what in ("loss", "accuracy")
        }
        assert all(type(line[name]) is int for name in ("epoch", "step", "peak_memory_bytes"))
        assert all(
            type(value) is float and math.isfinite(value)
            for name, value in line.items()
            if name.endswith(("loss", "accuracy"))
        )
        assert all(line[name] > 0 for name in ("images_per_second", "seconds", "peak_memory_bytes"))
        assert line["energy_joules"] is None  # no GPU, no NVML
        assert (line["train_accuracy"] * 64).is_integer()


def test_the_data_set_says_how_long_where_nobody_does():
    TRAIN.default_epochs, kept = 1, TRAIN.default_epochs
    try:
        assert len(fit(network(), epochs=None)) == 1
    finally:
        TRAIN.default_epochs = kept


def test_training_beats_chance():
    """BatchNorm alone, on random convolutions, in 64 steps: 0.33 at seeds 0 and 1."""
    train, test = digits(512, 200)
    history = fit(network(width=16), train, test, epochs=4, batch_size=32, optimizer="adam", lr=0.1)
    assert history[-1]["test_accuracy"] > 0.22  # chance is 0.1, its standard error 0.02
    assert history[-1]["train_accuracy"] > 0.22
    assert history[-1]["train_loss"] < math.log(10)


def test_the_reported_test_figures_are_the_model_s():
    model = network()
    last = fit(model)[-1]
    model.eval()
    with torch.no_grad():
        logits = model(batch(TEST, torch.arange(len(TEST)), None))
    assert last["test_accuracy"] == (logits.argmax(1) == TEST.labels).double().mean().item()
    assert last["test_loss"] == pytest.approx(F.cross_entropy(logits, TEST.labels).item(), rel=1e-6)


def test_evaluation_counts_every_image_whatever_the_batch_and_leaves_the_modes():
    model = network().train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    sums = [evaluate(model, Resident(TEST), size) for size in (7, 512)]
    assert [found.images for found in sums] == [len(TEST)] * 2
    assert sums[0].correct == sums[1].correct
    assert sums[0].loss.item() == pytest.approx(sums[1].loss.item(), rel=1e-6)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    "train, stats",
    [("bn", "batch"), ("gamma", "batch"), ("beta", "batch"), ("bn+output", "batch"), ("bn", "frozen")],
)
def test_what_trains_moves_and_nothing_else(train, stats):
    model = freeze(network(), train)
    before, still, buffers = trained(model), frozen(model), running(model)
    fit(model, bn_stats=stats)
    assert same(frozen(model), still)
    assert all(p.grad is None for p in model.parameters())
    after = trained(model)
    assert after.keys() == before.keys() and not any(
        torch.equal(p, before[name]) for name, p in after.items()
    )
    if stats == "frozen":
        assert same(running(model), buffers)
    else:
        assert not any(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
        assert model.bn1.num_batches_tracked == 2 * STEPS


def test_the_ragged_last_batch_counts():
    """Two steps of 8 + 1 images are not the one step of 8, and the statistics are updated once a step."""
    train, _ = digits(9)
    whole, cut = network(), network()
    fit(whole, train, batch_size=8, epochs=1)
    assert whole.bn1.num_batches_tracked == 2
    fit(cut, train, batch_size=9, epochs=1)
    assert cut.bn1.num_batches_tracked == 1


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_is_an_ordinary_module_afterwards(mode):
    model = network().train(mode)
    places = {name: id(p) for name, p in model.named_parameters()}
    fit(model)
    assert model.training is mode
    assert {name: id(p) for name, p in model.named_parameters()} == places
    assert all(p.untyped_storage().nbytes() == p.numel() * 4 for _, p in trainable(model))
    twin, other = copy.deepcopy(model), network(seed=5)
    other.load_state_dict(model.state_dict())
    images = batch(TEST, torch.arange(8), None)
    with torch.no_grad():
        expected = model.eval()(images)
        assert torch.equal(twin.eval()(images), expected)
        assert torch.equal(other.eval()(images), expected)
        twin.bn1.weight.add_(1)
        assert not torch.equal(twin.bn1.weight, model.bn1.weight)
    assert len(fit(model, epochs=1)) == 1  # and trains again


@pytest.mark.parametrize("engine", ["auto", "stock"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(engine):
    models = [network(engine=engine) for _ in range(3)]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        fit(model, seed=seed)
    assert same(models[0].state_dict(), models[1].state_dict())
    assert not same(trained(models[0]), trained(models[2]))


def without_flips(model):
    """Return the model with every ReLU wide open or shut: β = +6 where channel % 3 > 0, else −6, so that
    rounding cannot switch one."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(0.5).add_(0.5)
                module.bias.copy_(torch.where(torch.arange(module.num_features) % 3 > 0, 6.0, -6.0))
    return model


@pytest.mark.parametrize("engine", ["auto", "stock"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fit_is_the_loop_written_by_hand(engine, optimizer):
    """Two epochs against torch.optim on the stock network. float32 rounds each of the step's reductions, some
    1e-6 relative a gradient; the parameters move by lr × gradient, so they agree to lr times that (Adam
    divides by √v̂: a sign flip of a tiny gradient is ±lr)."""
    model, by_hand = without_flips(network(engine=engine)), without_flips(network(engine="stock"))
    rate = {"sgd": 0.01, "adam": 1e-3}[optimizer]
    recipe = Recipe(
        epochs=2, batch_size=24, optimizer=optimizer, lr=rate, milestones=(1,), seed=7, weight_decay=0.01
    )
    history = fastbn.fit(model, TRAIN, recipe=recipe, progress=False)

    parameters = [p for _, p in trainable(by_hand)]
    if optimizer == "sgd":
        reference = torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=0.01)
    else:
        reference = torch.optim.Adam(parameters, lr=rate, weight_decay=0.01)
    losses = []
    by_hand.train()
    for epoch in range(2):
        reference.param_groups[0]["lr"] = rate * 0.1**epoch
        draws = draw_epoch(len(TRAIN), 7, epoch, TRAIN.pad, TRAIN.flip)
        for indices in draws.order.split(24):
            loss = F.cross_entropy(by_hand(batch(TRAIN, indices, draws)), TRAIN.labels[indices])
            reference.zero_grad()
            loss.backward()
            reference.step()
            losses.append(loss.item() * len(indices))
    assert [line["train_loss"] for line in history] == pytest.approx(
        [sum(losses[:STEPS]) / 64, sum(losses[STEPS:]) / 64], rel=1e-5
    )
    start = without_flips(network(engine="stock"))
    for (name, p), (_, expected), (_, initial) in zip(
        trainable(model), trainable(by_hand), trainable(start), strict=True
    ):
        moved = (expected - initial).abs().max()
        assert moved > 0
        assert (p - expected).abs().max() < 1e-3 * moved + 1e-6, name
    for (name, b), (_, expected) in zip(model.named_buffers(), by_hand.named_buffers(), strict=True):
        torch.testing.assert_close(b, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_a_trained_layer_is_cast_anew_at_every_bf16_step():
    """autocast keeps cast weights for as long as its context lasts: a layer that trains would stay as it
    was first seen."""
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    with arithmetic("bf16", torch.device("cpu")):
        before = layer(x)
        with torch.no_grad():
            layer.weight += 1
        assert (layer(x) - before).sub(3).abs().max() < 0.1


def test_bf16_trains_and_is_not_fp32():
    models = {precision: network() for precision in ("fp32", "bf16")}
    histories = {precision: fit(model, precision=precision) for precision, model in models.items()}
    assert all(p.dtype == torch.float32 for p in models["bf16"].parameters())
    assert not same(trained(models["fp32"]), trained(models["bf16"]))
    assert histories["bf16"][0]["train_loss"] == pytest.approx(histories["fp32"][0]["train_loss"], rel=0.05)


@pytest.mark.parametrize("rate", [1e30, 3e38])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_divergence_leaves_the_parameters_finite(rate, optimizer):
    model = network().eval()
    with pytest.raises(Diverged, match=r"epoch \d.*lower --lr"):
        fit(model, lr=rate, epochs=4, optimizer=optimizer)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(p.untyped_storage().nbytes() == p.numel() * 4 for _, p in trainable(model))
    assert not model.training


def test_a_recipe_and_settings_exclude_each_other():
    with pytest.raises(UsageError, match=r"not both.*epochs, lr"):
        fastbn.fit(network(), TRAIN, recipe=Recipe(epochs=1), epochs=2, lr=0.1)


def test_nothing_to_train_is_refused():
    with pytest.raises(UsageError, match="nothing trains"):
        fit(freeze(network(), "none"))


def test_progress_is_lines_on_stderr_or_nothing(capfd):
    fit(network())
    assert capfd.readouterr() == ("", "")
    fit(network(), progress=True)
    out, err = capfd.readouterr()
    assert out == "" and [line.split("  ")[0] for line in err.splitlines()] == [
        "plan",
        "epoch 1/2",
        "epoch 2/2",
    ]
