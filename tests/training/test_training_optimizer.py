"""The flat vector, its optimizers against torch.optim in float64, and the learning rate by hand."""

import math

import pytest
import torch
from runs import network
from torch import nn

from fastbn.errors import UsageError
from fastbn.recipe import Recipe
from fastbn.trainable import freeze
from fastbn.training.schedule import learning_rate
from fastbn.training.state.flat import Flat
from fastbn.training.state.optimizer import Optimizer

YES = torch.tensor(True)
RATES = (0.1, 0.1, 0.03, 0.5, 0.5, 0.01, 0.2)
KINDS = [
    ({"momentum": 0.0, "weight_decay": 0.0}, lambda p: torch.optim.SGD(p)),
    ({"momentum": 0.9, "weight_decay": 0.0}, lambda p: torch.optim.SGD(p, momentum=0.9)),
    ({"momentum": 0.9, "weight_decay": 0.03}, lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=0.03)),
    (
        {"momentum": 0.8, "weight_decay": 0.03, "nesterov": True},
        lambda p: torch.optim.SGD(p, momentum=0.8, weight_decay=0.03, nesterov=True),
    ),
    ({"optimizer": "adam", "weight_decay": 0.0}, lambda p: torch.optim.Adam(p)),
    ({"optimizer": "adam", "weight_decay": 0.03}, lambda p: torch.optim.Adam(p, weight_decay=0.03)),
]


def gradients(n, count):
    """Return gradients of sizes from 1e-6 to 1e3, so that Adam's ε and the moments both matter."""
    torch.manual_seed(1)
    return torch.randn(count, n, dtype=torch.float64) * 10 ** torch.linspace(-6, 3, n, dtype=torch.float64)


def scalar(rate):
    return torch.tensor(rate, dtype=torch.float64)


@pytest.mark.parametrize(
    "settings, make", KINDS, ids=[",".join(f"{k}={v}" for k, v in kind[0].items()) for kind in KINDS]
)
def test_updates_are_those_of_torch_optim(settings, make):
    torch.manual_seed(0)
    vector = torch.randn(301, dtype=torch.float64)
    reference = nn.Parameter(vector.clone())
    mine, its = Optimizer(Recipe(**settings), vector), make([reference])
    for rate, gradient in zip(RATES, gradients(301, len(RATES)), strict=True):
        assert mine.update(vector, gradient, scalar(rate), YES)
        reference.grad = gradient.clone()
        its.param_groups[0]["lr"] = rate
        its.step()
        torch.testing.assert_close(vector, reference.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "optimizer, bad, rate, allowed",
    [
        *(
            (kind, bad, 0.1, allowed)
            for kind in ("sgd", "adam")
            for bad, allowed in ((1.0, False), (math.nan, False))
        ),
        *((kind, bad, 0.1, True) for kind in ("sgd", "adam") for bad in (math.nan, math.inf)),
        ("sgd", 1e30, 1e30, True),  # every number finite, the step's product not
        ("adam", 1e30, 0.1, True),  # the square overflows, and the change by it would be 0
    ],
)
def test_a_step_that_must_not_be_moves_nothing(optimizer, bad, rate, allowed):
    vector = torch.randn(50, generator=torch.Generator().manual_seed(0))
    it = Optimizer(Recipe(optimizer=optimizer), vector)
    for gradient in gradients(50, 3).float():
        it.update(vector, gradient, scalar(0.1), YES)
    before, state = vector.clone(), {name: value.clone() for name, value in it.state.items()}
    gradient = torch.ones(50)
    gradient[7] = bad
    assert not it.update(vector, gradient, scalar(rate), torch.tensor(allowed))
    assert torch.equal(vector, before)
    assert state.keys() == it.state.keys() and all(
        torch.equal(value, it.state[name]) for name, value in state.items()
    )


def test_flat_parameters_share_the_vector_and_their_gradients_are_gathered():
    model = freeze(network(), "bn")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    flat = Flat(model)
    trains = [p for p in model.parameters() if p.requires_grad]
    assert flat.vector.shape == flat.gradient.shape == (sum(p.numel() for p in trains),)
    assert torch.equal(flat.vector, torch.cat([p.detach().reshape(-1) for p in trains]))
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert (p.untyped_storage().data_ptr() == flat.vector.untyped_storage().data_ptr()) is p.requires_grad

    flat.vector.add_(1)
    assert all(torch.equal(p, before[name] + 1) for name, p in model.named_parameters() if p.requires_grad)

    model(torch.randn(4, 3, 32, 32)).logsumexp(1).sum().backward()
    trains[1].grad = None
    expected = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in trains])
    flat.gradient.fill_(float("nan"))
    flat.gather()
    assert expected.abs().sum() > 0 and torch.equal(flat.gradient, expected)
    assert all(p.grad is None for p in trains)


def test_dissolving_gives_every_parameter_storage_of_its_own():
    model = freeze(network(), "bn+output")
    flat = Flat(model)
    flat.vector.mul_(2)
    now = {name: p.detach().clone() for name, p in model.named_parameters()}
    flat.dissolve()
    trains = [p for p in model.parameters() if p.requires_grad]
    assert len({p.untyped_storage().data_ptr() for p in trains}) == len(trains)
    assert all(p.untyped_storage().nbytes() == p.numel() * 4 and p.grad is None for p in trains)
    flat.vector.zero_()
    assert all(torch.equal(p, now[name]) for name, p in model.named_parameters())


def test_flat_refuses_a_model_in_which_nothing_trains_and_mixed_dtypes():
    with pytest.raises(UsageError, match=r"nothing trains.*freeze"):
        Flat(freeze(network(), "none"))
    model = freeze(network(), "bn")
    model.bn1.double()
    with pytest.raises(UsageError, match=r"one dtype and device.*float32.*float64"):
        Flat(model)


SCHEDULES = [  # settings, {(epoch, step): the rate at 4 steps an epoch}
    ({"schedule": "constant"}, {(0, 0): 0.8, (5, 3): 0.8, (9, 3): 0.8}),
    (
        {"schedule": "multistep", "milestones": (4, 6)},
        {(0, 0): 0.8, (3, 3): 0.8, (4, 0): 0.08, (5, 3): 0.08, (6, 0): 0.008, (9, 3): 0.008},
    ),
    ({"schedule": "multistep"}, {(4, 3): 0.8, (5, 0): 0.08, (6, 3): 0.08, (7, 0): 0.008}),
    ({"schedule": "multistep", "milestones": ()}, {(9, 3): 0.8}),
    (
        {"schedule": "cosine"},
        {(0, 0): 0.8, (2, 2): 0.4 * (1 + math.sqrt(0.5)), (5, 0): 0.4, (7, 2): 0.4 * (1 - math.sqrt(0.5))},
    ),
    (
        {"schedule": "constant", "warmup_epochs": 2},
        {(0, 0): 0.1, (0, 1): 0.2, (0, 3): 0.4, (1, 0): 0.5, (1, 3): 0.8, (2, 0): 0.8},
    ),
    (
        {"schedule": "multistep", "milestones": (1,), "warmup_epochs": 2},
        {(0, 3): 0.4, (1, 0): 0.05, (1, 3): 0.08},
    ),
    (
        {"schedule": "cosine", "warmup_epochs": 6},
        {(0, 0): 0.8 / 24, (5, 0): 0.4 * 21 / 24, (7, 2): 0.4 * (1 - math.sqrt(0.5))},
    ),
]


@pytest.mark.parametrize(
    "settings, expected", SCHEDULES, ids=[",".join(map(str, s.values())) for s, _ in SCHEDULES]
)
def test_learning_rate(settings, expected):
    recipe = Recipe(lr=0.8, epochs=10, **settings).resolved(1)
    for (epoch, step), rate in expected.items():
        assert learning_rate(recipe, epoch, step, 4) == pytest.approx(rate, rel=1e-14), (epoch, step)


@pytest.mark.parametrize(
    "epochs, milestones", [(1, ()), (2, (1,)), (3, (1, 2)), (15, (7, 11)), (160, (80, 120))]
)
def test_default_milestones_divide_no_first_epoch(epochs, milestones):
    assert Recipe(epochs=epochs).resolved(1).milestones == milestones


@pytest.mark.parametrize("optimizer, rate", [("sgd", 0.1), ("adam", 0.001)])
def test_default_recipe(optimizer, rate):
    recipe = Recipe(optimizer=optimizer).resolved(15)
    assert (recipe.lr, recipe.epochs, recipe.precision, recipe.batch_size) == (rate, 15, "fp32", 128)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": True},
        {"batch_size": 2.0},
        {"seed": -1},
        {"warmup_epochs": -1},
        {"lr": 0},
        {"lr": float("nan")},
        {"lr": 1e39},
        {"lr": "0.1"},
        {"momentum": 1},
        {"weight_decay": -1e-4},
        {"milestones": (3, 3)},
        {"optimizer": "sdg"},
        {"schedule": None},
        {"precision": "fp16"},
        {"bn_stats": "eval"},
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_is_refused_by_the_setting_s_name(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=f"^{name} must be"):
        Recipe(**wrong)
