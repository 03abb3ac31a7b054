"""The fused updates against fastbn.training.state.optimizer in float64; a step that must not be leaves every
bit where it was."""

import math

import pytest
import torch
from crosscompile import Request, costs
from interpreted import DEVICE

from fastbn.kernels.triton import optimizer
from fastbn.recipe import Recipe
from fastbn.training.state.optimizer import BETA1, BETA2, EPS, Optimizer

# the interpreter's numpy
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
RATES = (0.1, 0.1, 0.03, 0.5, 0.2)
KINDS = [
    {"momentum": 0.0, "weight_decay": 0.0},
    {"momentum": 0.9, "weight_decay": 0.03},
    {"momentum": 0.8, "weight_decay": 0.03, "nesterov": True},
    {"optimizer": "adam", "weight_decay": 0.0},
    {"optimizer": "adam", "weight_decay": 0.03},
]
YES = torch.tensor(True)
IDS = [",".join(map(str, kind.values())) for kind in KINDS]
# values around each vector that nobody may touch; 64 bytes, so that what they enclose stays aligned
GUARD = 16


class Fused:
    """A vector and its optimizer's state on the device, each between guards; the learning rate is one
    tensor, filled anew each step."""

    def __init__(self, recipe, vector, rate=torch.float64):
        self.recipe, n = recipe, vector.numel()
        names = ("momentum",) if recipe.optimizer == "sgd" else ("mean", "square")
        self.buffers = {name: torch.full((n + 2 * GUARD,), 7.0, device=DEVICE) for name in ("vector", *names)}
        self.vector, *moments = (buffer[GUARD : GUARD + n] for buffer in self.buffers.values())
        self.vector.copy_(vector)
        self.state = {name: value.zero_() for name, value in zip(names, moments, strict=True)}
        if recipe.optimizer == "adam":
            self.state["steps"] = torch.zeros((), device=DEVICE)
        self.scratch = optimizer.scratch_for(self.vector).fill_(math.nan)
        self.rate = torch.zeros((), dtype=rate, device=DEVICE)

    def update(self, gradient, rate, allowed=True):
        self.rate.fill_(rate)
        moved = torch.tensor(False, device=DEVICE)
        shared = (self.scratch, self.rate, torch.tensor(allowed, device=DEVICE), moved)
        decay, gradient = self.recipe.weight_decay, gradient.to(DEVICE)
        if self.recipe.optimizer == "sgd":
            m, nesterov = self.recipe.momentum, self.recipe.nesterov
            optimizer.sgd(
                self.vector,
                gradient,
                self.state["momentum"],
                *shared,
                weight_decay=decay,
                momentum_factor=m,
                nesterov=nesterov,
            )
        else:
            optimizer.adam(
                self.vector,
                gradient,
                *self.state.values(),
                *shared,
                weight_decay=decay,
                beta1=BETA1,
                beta2=BETA2,
                eps=EPS,
            )
        for name, buffer in self.buffers.items():
            assert (buffer[:GUARD] == 7).all() and (buffer[-GUARD:] == 7).all(), f"written beyond {name}"
        return moved.item()

    def bits(self):
        """Return copies of everything a step may move."""
        return [value.clone().view(torch.int32) for value in (self.vector, *self.state.values())]


def start(n):
    return torch.randn(n, generator=torch.Generator().manual_seed(0))


def gradients(n, count):
    """Return gradients of sizes from 1e-6 to 1e3, so that Adam's ε and the moments both matter."""
    return torch.randn(count, n, generator=torch.Generator().manual_seed(1)) * 10 ** torch.linspace(-6, 3, n)


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# a constant to Triton; less than a block; two blocks and one value
@pytest.mark.parametrize("n", [1, 127, 1025])
@pytest.mark.parametrize("settings", KINDS, ids=IDS)
def test_updates_are_the_optimizer_s(settings, n):
    recipe = Recipe(**settings)
    vector = start(n).double()
    ours, theirs = Fused(recipe, vector), Optimizer(recipe, vector)
    path = [vector.clone()]
    for rate, gradient in zip(RATES, gradients(n, len(RATES)), strict=True):
        assert ours.update(gradient, rate) and theirs.update(
            vector, gradient.double(), torch.tensor(rate, dtype=torch.float64), YES
        )
        path.append(vector.clone())
        # a step rounds eight times at most, each time something no larger than the vector or the largest
        # change so far
        steps = torch.stack(path)
        size = steps.abs().amax(0) + steps.diff(dim=0).abs().amax(0)
        error = (ours.vector.cpu().double() - vector).abs()
        assert (error <= 4 * torch.finfo(torch.float32).eps * len(RATES) * size).all()
    for name, value in theirs.state.items():
        torch.testing.assert_close(
            ours.state[name].cpu().double(), value, rtol=1e-5, atol=1e-6 * float(value.abs().max())
        )


def test_the_first_step_of_adam_is_the_rate():
    """m̂ = g and v̂ = g² exactly, which fp32 powers of β₂ miss by 1e-5."""
    gradient = torch.tensor([1.0, -3.0, 0.01])
    it = Fused(Recipe(optimizer="adam", weight_decay=0.0), torch.zeros(3))
    it.update(gradient, 0.1)
    torch.testing.assert_close(it.vector.cpu(), -0.1 * gradient / (gradient.abs() + EPS), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    # place: in each of the two whole blocks of 1025 values, and in the ragged one
    "bad, rate, allowed, place",
    [
        *((math.nan, 0.1, True, place) for place in (0, 512, 1024)),
        (math.inf, 0.1, True, 1024),
        (-math.inf, 0.1, True, 0),
        (1.0, 0.1, False, 0),
        (math.nan, 0.1, False, 0),
        (1.0, math.nan, True, 0),
    ],
)
@pytest.mark.parametrize("settings", [KINDS[2], KINDS[4]], ids=["sgd", "adam"])
def test_a_step_that_must_not_be_moves_nothing(settings, bad, rate, allowed, place):
    """It leaves no trace either: the next step is as if it had not been asked for."""
    n, recipe = 1025, Recipe(**settings)
    it, other = Fused(recipe, start(n)), Fused(recipe, start(n))
    first, second, wrong = gradients(n, 3)
    assert it.update(first, 0.1) and other.update(first, 0.1)
    before = it.bits()
    wrong[place] = bad
    assert not it.update(wrong, rate, allowed)
    assert same(it.bits(), before)
    assert it.update(second, 0.2) and other.update(second, 0.2)
    assert same(it.bits(), other.bits()) and not same(it.bits(), before)


@pytest.mark.parametrize(
    "settings, gradient, rate",
    [
        (KINDS[1], 1e30, 1e30),  # the change
        (KINDS[1], 3e38, 1e-38),  # the momentum, at the second step
        (KINDS[3], 1e20, 0.1),  # Adam's second moment: the change would be 0, now and ever after
        (KINDS[3], 1.0, 3.5e38),  # the rate, as a float32
    ],
    ids=["change", "momentum", "square", "rate"],
)
def test_overflow_moves_nothing(settings, gradient, rate):
    it = Fused(Recipe(**settings), start(40))
    wrong = torch.ones(40)
    wrong[33] = gradient
    moved, before = True, it.bits()
    for _ in range(2):
        if moved:
            before = it.bits()
            moved = it.update(wrong, rate)
    assert not moved and same(it.bits(), before)


@pytest.mark.parametrize("place", [0, 70, 130, None])  # in the first, a middle, and the last chunk of flags
def test_flags_are_read_in_as_many_chunks_as_there_are(monkeypatch, place):
    """A vector of more than BLOCK·FLAGS values has several."""
    monkeypatch.setattr(optimizer, "BLOCK", 16)
    monkeypatch.setattr(optimizer, "FLAGS", 4)
    it = Fused(Recipe(**KINDS[1]), start(131))  # 9 programs: two chunks and one flag
    gradient = torch.ones(131)
    if place is not None:
        gradient[place] = math.nan
    before = it.bits()
    assert it.update(gradient, 0.1) is (place is None)
    assert same(it.bits(), before) is (place is not None)


@pytest.mark.parametrize("settings", [KINDS[2], KINDS[4]], ids=["sgd", "adam"])
def test_runs_repeat_bit_for_bit_whatever_type_the_rate_has(settings):
    runs = [
        Fused(Recipe(**settings), start(513), rate) for rate in (torch.float64, torch.float64, torch.float32)
    ]
    for rate, gradient in zip(RATES, gradients(513, len(RATES)), strict=True):
        assert all(it.update(gradient, rate) for it in runs)
    assert same(runs[0].bits(), runs[1].bits()) and same(runs[0].bits(), runs[2].bits())


def test_adam_counts_the_steps_that_moved():
    it = Fused(Recipe(**KINDS[3]), start(5))
    for allowed, expected in ((True, 1), (False, 1), (True, 2), (True, 3)):
        assert it.update(torch.ones(5), 0.1, allowed) is allowed
        assert it.state["steps"].item() == expected


VECTORS = {"sgd": ("p_ptr", "g_ptr", "b_ptr"), "adam": ("p_ptr", "g_ptr", "m_ptr", "v_ptr", "steps_ptr")}
BETAS = {"BETA1": BETA1, "BETA2": BETA2, "EPS": EPS}
OPTIONS = {"num_warps": optimizer.WARPS, "enable_fp_fusion": False}


def request(kind: str, part: str, capability: int, n: str = "i32") -> Request:
    signature = dict.fromkeys((*VECTORS[kind], "scratch_ptr"), "*fp32") | {
        "lr_ptr": "*fp64",
        "n": n,
        "weight_decay": "fp32",
    }
    constexprs = {"BLOCK": optimizer.BLOCK, **({"NESTEROV": True} if kind == "sgd" else BETAS)}
    if kind == "sgd":
        signature["momentum_factor"] = "fp32"
    if part == "update":
        signature |= {"allowed_ptr": "*i1", "moved_ptr": "*i1"}
        constexprs |= {"CHUNKS": 2, "FLAGS": optimizer.FLAGS}
    elif kind == "adam":
        constexprs |= {"LOG_BETA1": math.log(BETA1), "LOG_BETA2": math.log(BETA2)}
    return Request(
        "fastbn.kernels.triton.optimizer", f"{kind}_{part}_kernel", signature, constexprs, OPTIONS, capability
    )


def check(requests):
    for asked, cost in zip(requests, costs(requests), strict=True):
        assert cost.spills == 0, asked
        # exp in float64 is made of them
        assert asked.kernel.startswith("adam") or "fma" not in cost.ptx, asked


@pytest.mark.slow
def test_compiles_without_spills_or_contractions():
    check([request("sgd", "update", 90), request("adam", "check", 90)])


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_every_kernel_compiles_for_every_capability(capability):
    check(
        [
            request(kind, part, capability, n)
            for kind in VECTORS
            for part in ("check", "update")
            for n in ("i32", "i32:16")
        ]
    )
