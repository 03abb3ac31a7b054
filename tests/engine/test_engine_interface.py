"""What engines say of themselves, what steers a forward, and an engine that is handed in."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from nets import resnet
from torch import nn

from bench.oracle.networks import images
from fastbn import explain, fuse
from fastbn.engine import fused_forward
from fastbn.engine.algorithm import Algorithm
from fastbn.engine.context import current, mixed, recomputing, synchronised, unrecorded
from fastbn.engine.executor import Eager
from fastbn.engine.interface import Execution
from fastbn.engine.native import program
from fastbn.engine.native.algorithms import NAMES
from fastbn.engine.recomputation import Recompute
from fastbn.engine.reference.engine import Reference
from fastbn.engine.region import executor_of
from fastbn.engine.triton.cuda_graphs import CudaGraphs


def test_every_algorithm_says_how_many_products_it_makes():
    """A new one without a figure is an error here, not a figure of 1 in a plan."""
    assert all(0 < algorithm.products < 2 for algorithm in Algorithm)
    assert set(NAMES.values()) < set(Algorithm)


def test_an_algorithm_is_its_name_in_records():
    kept = json.loads(json.dumps({Algorithm.ROLLING: Algorithm.RAW}))
    assert kept == {"rolling rows": "direct, weights not packed"}
    assert {Algorithm(name) for name in kept.values()} == {Algorithm.RAW}
    assert f"{Algorithm.TAPS}" == str(Algorithm.TAPS) == "tap by tap"


@pytest.mark.parametrize("execution", Execution)
def test_the_region_chooses_its_executor(execution):
    class Kind(Reference):
        pass

    Kind.execution = execution
    kinds = {
        Execution.EAGER: Eager,
        Execution.CUDA_GRAPH: CudaGraphs,
        Execution.PROGRAM: program.Programs,
    }
    assert type(executor_of(Kind())) is kinds[execution]


def test_contexts_nest_and_end():
    before, policy = current(), Recompute(1)
    with mixed(torch.float16), recomputing(policy):
        with unrecorded(), recomputing(None):
            inside = current()
            assert (inside.gradients, inside.recompute, inside.recorded) == (torch.float16, None, False)
        assert (current().recompute, current().recorded) == (policy, True)
        with pytest.raises(RuntimeError), synchronised(None):
            raise RuntimeError
        assert current().gradients == torch.float16
    assert current() == before


def test_an_engine_that_is_handed_in_runs_the_model():
    asked = []

    class Own(Reference):
        def convolve(self, conv, *arguments):
            asked.append(conv.name)
            return super().convolve(conv, *arguments)

    model, x = resnet(8, 4).double(), images(2)
    expected = fuse(resnet(8, 4).double(), "reference")(x)
    assert torch.equal(fuse(model, Own(), check=False)(x), expected)
    assert len(asked) == sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert (fused_forward(model).engine, explain(model).why) == ("reference", "handed in")
    assert torch.equal(copy.deepcopy(model)(x), expected) and len(asked) > len(set(asked))
