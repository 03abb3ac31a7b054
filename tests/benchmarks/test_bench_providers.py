"""Who takes a step on a CPU, and who on a GPU."""

import pytest
import torch
from suite_cases import CPU, TINY

from bench.suite.cases import Case, grid
from bench.suite.providers import left_out, providers
from fastbn.engine.interface import Execution
from fastbn.errors import MachineError, UsageError

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*Benchmark")]


def test_a_cpu_offers_no_provider_of_cudas():
    assert not any(
        "amp" in provider.name or "graph" in provider.name for provider in providers(TINY, CPU, compiled=True)
    )
    assert left_out(CPU, True) and not any(case.precision != "fp32" for case in grid("full", CPU).steps)
    with pytest.raises(MachineError, match="mixed precision is measured on CUDA"):
        providers(Case(8, 4, 8, precision="mixed"), CPU)
    with pytest.raises(UsageError, match="--grid must be tiny, default or full, got 'huge'"):
        grid("huge", CPU)


def test_a_gpu_has_every_provider(monkeypatch):
    """Names are compared; nothing runs."""
    engine = type("Engine", (), {"name": "triton", "execution": Execution.CUDA_GRAPH})
    monkeypatch.setattr("bench.suite.providers.choose", lambda *_: (engine, ""))
    cuda = torch.device("cuda")
    full = {
        provider.name.removeprefix("stock-full ")
        for provider in providers(TINY, cuda, True)
        if provider.trains == "all"
    }
    assert full == {"stock-full", "channels-last", "compiled", "graph"}
    mixed = {
        provider.name
        for provider in providers(Case(8, 4, 8, precision="mixed"), cuda, True)
        if provider.trains == "bn"
    }
    assert mixed == {
        "stock-bn channels-last amp-fp16", "stock-bn channels-last "
                                           "amp-bf16", "stock-bn compiled "
                                                       "amp-bf16", "stock-bn graph amp-bf16",
        "fastbn triton", "fastbn triton graph",
    }  # fmt: skip
