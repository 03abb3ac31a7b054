"""The kernel level and the model's costs: fused and stock are float64's, and cost what the design says."""

import pytest
import torch
from suite_cases import CPU, RATES

from bench.suite import costs, kernels
from bench.suite.cases import Blocks, Case

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*Benchmark")]


def test_fused_and_stock_kernels_are_float64s(monkeypatch):
    monkeypatch.setitem(kernels.FLUSH, "cpu", 1 << 20)  # of which nothing is measured here
    for operation in kernels.OPERATIONS:
        # 7: no whole number of Winograd's tiles
        found = kernels.measure(Blocks(8, 7, 3), operation, CPU, RATES, 3)
        assert {cache for cache, _ in found} == set(kernels.CACHES)
        for row in found.values():
            assert row.failed is None and len(row.samples) == 3 and row.moved_bytes
            assert 0 < row.gradient_error < kernels.allowed(Blocks(8, 7, 3))


def test_stock_gradient_kernels_are_autograds_own():
    given = kernels.inputs(Blocks(8, 7, 3), CPU)
    y, gamma, beta = (t.clone().requires_grad_() for t in (given.y, given.gamma, given.beta))
    z = torch.relu(torch.nn.functional.batch_norm(y, None, None, gamma, beta, True))
    torch.nn.functional.conv2d(z, given.weight, padding=1).backward(given.dy)
    _, dgamma, dbeta, dy = kernels.stock("∇conv2", given)()
    assert torch.equal(dgamma, gamma.grad) and torch.equal(dbeta, beta.grad) and torch.equal(dy, y.grad)


def test_an_identity_block_costs_what_the_design_says():
    """In units of A, one activation: fused 6 forward and 9 backward, a bit an element of mask aside; stock
    17 and 23."""
    blocks = Blocks(16, 8, 4)
    A = 4 * 4 * 16 * 8 * 8

    def moved(provider, *operations):
        found = [kernels.cost(blocks, operation, provider) for operation in operations]
        return round(sum(each.read + each.written for each in found) / A)

    assert moved("fastbn", "conv1", "conv2") == 6 and moved("fastbn", "∇conv1", "∇conv2") == 9
    assert moved(kernels.STOCK, "conv1", "conv2") == 17 and moved(kernels.STOCK, "∇conv1", "∇conv2") == 23
    assert moved(kernels.ALONE, "conv2") == moved(kernels.ALONE, "∇conv2") == 2


def test_costs_of_a_network_with_pooling_between_its_regions():
    case = Case(18, 2, 32, width=8)
    (_, first, wanted), (_, second, passed) = costs.regions(case)
    assert (
        first == ((2, 3, 32, 32),) and wanted == (False,) and second == ((2, 8, 8, 8),) and passed == (True,)
    )
