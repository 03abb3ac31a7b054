"""pytest bench/test_kernels.py --benchmark-only: each fused operation against the stock sequence that it
replaces."""

from typing import Any

from bench.suite.session import Suite, play

LEVEL = "kernel"


def test_kernel(suite: Suite, benchmark: Any, case: tuple[Any, ...], provider: str) -> None:
    blocks, operation, cache = case
    found = suite.kernels(blocks, operation).items()
    play(benchmark, next(row for (at, name), row in found if at == cache and name.startswith(provider)))
