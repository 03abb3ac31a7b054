"""Plans: what they predict against what is counted, what fits, and what is said where nothing does."""

from __future__ import annotations

import pytest
import torch
from counted import Counted
from nets import resnet

from fastbn import fuse
from fastbn.data.feed import Resident
from fastbn.data.images import Images
from fastbn.engine.recomputation import Recompute
from fastbn.engine.select import choose
from fastbn.errors import MachineError
from fastbn.planning import roofline
from fastbn.planning.data_sheets import SHEETS, SPARE
from fastbn.planning.plan import Planner
from fastbn.planning.step_memory import NetworkMemory
from fastbn.recipe import Recipe
from fastbn.training.planner import planner_of
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
BATCH = 16


def source(n: int = BATCH, size: int = 32) -> Resident:
    draw = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=draw)
    return Resident(Images(pixels, torch.arange(n) % 10))


def recipe(**settings) -> Recipe:
    return Recipe(**{"epochs": 2, "batch_size": BATCH} | settings).resolved(2)


def model(engine="native", depth=56):
    return fuse(resnet(depth, 8).float().train(), engine)


def take(settings: Recipe, network, counted: Counted | None = None, steps: int = 1):
    """Steps by plan; the step that took them."""
    feed, totals = source(), Totals.zero(CPU)
    step = TrainingStep(network, feed, settings, planner=planner_of(network, feed, settings))
    feed.begin(0, 0)
    batches = list(feed.batches(settings.batch_size))
    step(batches[0], 0.1, totals)  # packs the weights, and fills the pool
    if counted is not None:
        with counted:
            step(batches[0], 0.1, totals)
    return step


@pytest.mark.parametrize("memory", [None, 0.01], ids=["whole", "in segments"])
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_what_a_step_takes_is_predicted_within_five_percent(engine, memory):
    counted = Counted()
    step = take(recipe(memory=memory), model(engine, 26), counted)
    assert (step.plan.recompute is None) == (memory is None)
    assert step.plan.memory.step == pytest.approx(counted.peak, rel=0.05)
    if memory is not None:
        assert counted.peak + step.plan.memory.weights < 1e9 * memory


@pytest.mark.slow
def test_a_batch_of_four_times_the_budget_finishes_inside_it_with_the_same_bits():
    whole = Counted()
    free = take(recipe(), model(depth=218), whole)
    fixed = free.plan.memory.peak - free.plan.memory.step
    budget = (fixed + whole.peak / 4) / (1 - SPARE)
    inside = Counted()
    tight = take(recipe(memory=budget / 1e9), model(depth=218), inside)
    assert inside.peak < whole.peak / 4 * 1.02
    assert torch.equal(tight.flat.vector, free.flat.vector)
    assert torch.equal(tight.running.vector, free.running.vector)


@pytest.mark.slow
def test_no_more_is_computed_again_than_must_be():
    feed = source()
    network = model()
    shares = []
    for memory in (1.0, 0.022, 0.02, 0.018, 0.016):
        plan = planner_of(network, feed, recipe(memory=memory)).plan(BATCH)
        assert plan.memory.peak <= 1e9 * memory * (1 - SPARE)
        shares.append(plan.again)
    assert shares[0] == 0 and shares == sorted(shares) and 0 < shares[1] < shares[-1] <= 0.51


@pytest.mark.slow
def test_the_largest_batch_is_named_where_nothing_fits():
    planner = planner_of(model(), source(), recipe(memory=0.02))
    largest = planner.largest()
    assert planner.plan(largest).memory.peak <= planner.budget
    with pytest.raises(
        MachineError,
        match=rf"a step of 100,000 images needs .* the largest batch that fits is {largest:,}, or",
    ):
        planner.plan(100_000)
    with pytest.raises(MachineError, match="not even one image fits"):
        planner_of(model(), source(), recipe(memory=0.001)).plan(1)


def test_slices_need_the_memory_of_one():
    planner = planner_of(model(), source(), recipe(memory=1.0))
    assert planner.plan(8192, 64).memory.step == planner.plan(64).memory.step


@pytest.mark.slow
def test_866_layers_at_8192_images_fit_80_gb():
    from fastbn.engine.triton.engine import Triton

    network = NetworkMemory(resnet(866, 16).float().train(), Triton())
    sheet = SHEETS["h100"]
    planner = Planner(network, (3, 32, 32), "mixed", sheet.memory)
    plan = planner.plan(8192)
    assert plan.recompute is not None and plan.memory.peak <= 80e9
    assert plan.again < 0.3
    assert planner.plan(128).recompute is None
    small, large = (
        roofline.seconds(planner, planner._plan(n, n, None, 0), "mixed", sheet) for n in (128, 1024)
    )
    assert 4 * small < large < 8 * small  # at 128 launches count


def test_frozen_or_stock_networks_have_nothing_to_decide():
    assert planner_of(resnet(8).float(), source(), recipe()) is None
    engine, _ = choose("native", CPU, torch.float32)
    frozen = resnet(8).float().requires_grad_(False)
    assert NetworkMemory(frozen, engine).occupied((4, 3, 8, 8), (torch.float32,) * 2, Recompute(1)).saved == 0
