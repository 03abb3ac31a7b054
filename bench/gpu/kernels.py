"""The kernels' checks of bench.gpu correctness: the grid of bench/oracle/operations.py on this device,
against the same formula in float64.

Every case of the tests and the shapes of real networks, in float32 (without TF32, and with it, each to a
tolerance of its own), float16 and bfloat16."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from bench.gpu.measure import CAPABILITY, DEVICE
from bench.oracle import operations
from bench.oracle.errors import relative
from bench.oracle.operations import Case
from bench.oracle.triton_cases import CASES
from fastbn.engine.interface import Engine
from fastbn.engine.triton.engine import Triton
from fastbn.engine.triton.tuning import LIBRARY, ROLLING, TAPS

Errors = Iterable[operations.Error]
Checks = list[tuple[str, Callable[[], Errors]]]
HALF, CPU_HALF = (torch.float16, torch.bfloat16), (torch.float16,)
TF32 = "tf32"

REAL = [
    Case("CIFAR, 16", 128, 32, 32, 16, 16),
    Case("CIFAR, 32", 128, 16, 16, 32, 32),
    Case("CIFAR, 64", 128, 8, 8, 64, 64),
    Case("CIFAR, 16, odd batch", 77, 32, 32, 16, 16),
    Case("CIFAR, 32, odd batch", 77, 16, 16, 32, 32),
    Case("CIFAR, 64, odd batch", 77, 8, 8, 64, 64),
    Case("CIFAR's stem", 128, 32, 32, 3, 16),
    Case("CIFAR, 16 to 32", 128, 32, 32, 16, 32, stride=2),
    Case("CIFAR's projection", 128, 32, 32, 16, 32, kernel=1, stride=2, padding=0),
    Case("ImageNet, 64", 128, 56, 56, 64, 64),
    Case("ImageNet, 64, odd batch", 33, 56, 56, 64, 64),
    Case("ImageNet, 128", 32, 28, 28, 128, 128),
    Case("ImageNet, 256", 128, 14, 14, 256, 256),
    Case("ImageNet, 256, odd batch", 33, 14, 14, 256, 256),
    Case("a bottleneck's way out", 32, 56, 56, 64, 256, kernel=1, padding=0),
    Case("a bottleneck's way in", 32, 14, 14, 1024, 256, kernel=1, padding=0),
    Case("a bottleneck's projection", 32, 56, 56, 256, 512, kernel=1, stride=2, padding=0),
    Case("ImageNet's stem", 16, 224, 224, 3, 64, kernel=7, stride=2, padding=3),
]


def tolerance(case: Case, dtype: torch.dtype, by: str, tf32: bool) -> float:
    """Return the norm-wise error to allow of a convolution's result: float32 adds kernel² · C products; half
    and TF32 round what is stored or multiplied."""
    if dtype != torch.float32:
        return 1.05 * torch.finfo(dtype).eps
    if tf32:
        # operands may be cut to ten bits rather than rounded: a bias that does not average out
        return 2.0**-9
    return 1e-5 if by == LIBRARY else 2e-6 * max(1.0, (case.kernel**2 * case.c / case.groups / 144) ** 0.5)


def operation(
    case: Case, by: str, way: str, kind: str, dtype: torch.dtype, tf32: bool = False, batch: bool = True
) -> Errors:
    torch.backends.cudnn.allow_tf32 = tf32
    engine, most = Triton(CAPABILITY, by), tolerance(case, dtype, by, tf32)
    errors = operations.forward_errors if way == "forward" else operations.gradient_errors
    yield from errors(engine, case, kind, dtype, most, batch, str(DEVICE), exact=4e-6)


def operation_checks(small: bool) -> Checks:
    """Return the whole grid of checks; the real shapes and what trains in half precision first."""
    dtypes = (torch.float32, *(HALF if DEVICE.type == "cuda" else CPU_HALF))
    kinds = [("forward", kind) for kind in operations.SOURCES]
    kinds += [("gradient", mask) for mask in operations.MASKS]
    algorithm = Triton(CAPABILITY).algorithm
    real = [] if small else [(case, algorithm(case.conv(), (case.h, case.w))) for case in REAL]
    routed = [(case, case.by) for case in CASES]
    found: Checks = []

    def grid(cases: list[Any], dtypes: Iterable[torch.dtype], tf32: bool = False, batch: bool = True) -> None:
        for (case, by), dtype, (way, kind) in ((c, d, k) for d in dtypes for c in cases for k in kinds):
            word = TF32 if tf32 else str(dtype).removeprefix("torch.")
            name = f"{way} {kind}, {word}: {case.why}, {case.n}×{case.c}→{case.oc}×{case.h}×{case.w}, {by}"
            name += "" if batch else ", frozen"
            found.append((name, partial(operation, case, by, way, kind, dtype, tf32, batch)))

    grid(real, dtypes[1:])
    grid(routed, dtypes[1:])
    grid(real, dtypes[:1])
    grid(routed, dtypes[:1])
    if DEVICE.type == "cuda":
        grid(real[:3] + real[9:10], dtypes[:1], tf32=True)
    frozen = ("nothing a multiple", "both extents odd")
    grid([pair for pair in routed if any(word in pair[0].why for word in frozen)], dtypes, batch=False)
    for by in (TAPS, ROLLING, LIBRARY):
        found.append((f"NaN, {by}", partial(unusual, operations.nan_errors, by)))
        found.append((f"mean = 1000·std, {by}", partial(unusual, operations.large_mean_errors, by)))
    for by, dtype in itertools.product((TAPS, LIBRARY), dtypes):
        found.append((f"two paths and three terms, {dtype}, {by}", partial(two_paths, by, dtype)))
    return found


def unusual(errors: Callable[[Engine, str], Errors], by: str) -> Errors:
    """Yield what unusual numbers do to an algorithm, in float32."""
    torch.backends.cudnn.allow_tf32 = False
    yield from errors(Triton(CAPABILITY, by), str(DEVICE))


def two_paths(by: str, dtype: torch.dtype) -> Errors:
    torch.backends.cudnn.allow_tf32 = False
    found, expected = operations.two_paths(Triton(CAPABILITY, by), dtype, str(DEVICE))
    # half: each path but the last, and the sum of what is added, are stored rounded
    most = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    yield "ds", relative(found, expected), most
