"""The CPU kernels on 64-bit ARM: cross-compiled, run by an emulator, held to what the native engine is
held to on this machine."""

from __future__ import annotations

import shutil

import pytest
import torch
from emulated import Emulated, build_driver
from test_native_operations import CASES, STORED, TOLERANCE

from bench.oracle.errors import relative
from bench.oracle.operations import check, forward_errors, gradient_errors, two_paths
from fastbn.engine.native import build

CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = [name for name in (CROSS, EMULATOR) if shutil.which(name) is None]
LARGE = 2e8  # multiplications that the emulator is not asked for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler"),
    pytest.mark.skipif(
        bool(MISSING), reason=f"needs {' and '.join(MISSING)}: Debian's g++-aarch64-linux-gnu and qemu-user"
    ),
]
SMALL = [
    case
    for case in CASES
    if case.n * case.h * case.w * case.c * case.oc * case.kernel**2 / case.stride**2 < LARGE
]
BOTH = [*((case, torch.float32) for case in SMALL), *((case, torch.bfloat16) for case in SMALL[1::3])]


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    program = tmp_path_factory.mktemp("aarch64") / "kernels"
    build_driver([CROSS], program)
    return [EMULATOR, str(program)]


@pytest.fixture
def engine(command) -> Emulated:
    return Emulated(command)


def test_vectors_have_four_lanes(engine):
    assert engine.mask_bytes(16) == 4


@pytest.mark.parametrize("kind", ["formed", "residual", "projection"])
@pytest.mark.parametrize("case, dtype", BOTH, ids=lambda given: getattr(given, "why", str(given)))
def test_forward(engine, case, kind, dtype):
    check(forward_errors(engine, case, kind, dtype, STORED[dtype]))


@pytest.mark.parametrize("masked", ["saved", "again"])
@pytest.mark.parametrize("case, dtype", BOTH, ids=lambda given: getattr(given, "why", str(given)))
def test_gradient(engine, case, masked, dtype):
    check(gradient_errors(engine, case, masked, dtype, STORED[dtype]))


def test_two_paths_and_three_added_terms(engine):
    found, expected = two_paths(engine)
    assert relative(found, expected) < TOLERANCE
