"""pytest bench/test_kernels.py --benchmark-only: each fused operation against the stock sequence that it
replaces."""

from typing import Any

import pytest

from bench.suite.cases import Blocks
from bench.suite.kernels import CACHES, OPERATIONS, STOCK
from bench.suite.session import SUITE, Suite, play


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suite = metafunc.config.stash[SUITE]
    chosen = [
        (b, op, cache, who)
        for b in suite.grid.blocks
        for op in OPERATIONS
        for cache in CACHES
        for who in (STOCK, "fastbn")
    ]
    kinds = [
        f"{op.replace('∇', 'grad-')}-{b.channels}x{b.size}-b{b.batch_size}-{b.precision}"
        for b, op, _, _ in chosen
    ]
    ids = [f"{kind}-{cache}-{who}" for kind, (_, _, cache, who) in zip(kinds, chosen, strict=True)]
    metafunc.parametrize("blocks, operation, cache, provider", chosen, ids=ids)


def test_kernel(
    suite: Suite, benchmark: Any, blocks: Blocks, operation: str, cache: str, provider: str
) -> None:
    found = suite.kernels(blocks, operation)[cache]
    play(benchmark, next(own for name, own in found.items() if name.startswith(provider)))
