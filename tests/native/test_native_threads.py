"""The CPU kernels' threads: a pool of their own, by itself and under the engine, from several callers and
after a fork."""

from __future__ import annotations

import multiprocessing
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.oracle.operations import Case, activation, affine, draw, source, target
from fastbn.engine.interface import BackpropPath as Way
from fastbn.engine.interface import LazyActivation, Mask
from fastbn.engine.native import build
from fastbn.engine.native import engine as native
from fastbn.graph.activations import RELU

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
DRIVER = Path(__file__).with_name("pool_driver.cpp")
CASE = Case("too little for torch to use threads of its own, which no forked process may", 3, 16, 16, 32, 32)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def run_driver(program: Path, *flags: str, arguments: tuple[str, ...] = ()) -> None:
    sources = [str(build.SOURCES / "threads" / "pool.cpp"), str(DRIVER)]
    command = [
        *(build.compiler() or []),
        "-std=c++17",
        "-O1",
        "-g",
        "-pthread",
        *flags,
        f"-I{build.SOURCES}",
        *sources,
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True, timeout=300)
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_pool_by_itself(tmp_path):
    run_driver(tmp_path / "pool")


def test_the_threads_of_openmp(tmp_path):
    if not has_openmp(tmp_path):
        pytest.skip("the C++ compiler has no OpenMP")
    run_driver(tmp_path / "pool", "-fopenmp", arguments=("openmp",))


def has_openmp(folder: Path) -> bool:
    empty = folder / "empty.cpp"
    empty.write_text("int main() {}", encoding="utf-8")
    command = [*(build.compiler() or []), "-fopenmp", str(empty), "-o", str(folder / "empty")]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


@pytest.mark.slow
def test_the_pool_has_no_race(tmp_path):
    run_driver(tmp_path / "pool", "-fsanitize=thread", arguments=("no fork",))


def both_passes(engine: native.Native) -> Callable[[], list[torch.Tensor]]:
    """Return a convolution that forms its source, and a gradient with its sums: calling it runs the kernels,
    and nothing of torch's that has threads of its own."""
    conv, (read, _) = CASE.conv(), source("residual", CASE)
    packed, c1_c2_c0 = (
        engine.pack(conv, draw(CASE.oc, CASE.c, 3, 3, seed=5), torch.float32),
        tuple(draw(3, CASE.oc, seed=9)),
    )
    arriving = activation(*conv.shape(CASE.source), seed=8)
    assert isinstance(read, LazyActivation)

    def run() -> list[torch.Tensor]:
        wanted, out = target(CASE.oc), affine(CASE.c)
        y, formed = engine.convolve(conv, packed, read, True, True, wanted)
        assert formed is not None and formed.z is not None
        mask = Mask(RELU, formed.mask, read.ys, read.norms, (out,))
        ds, _ = engine.gradient([Way(conv, packed, arriving, y, c1_c2_c0)], [formed.z], mask, CASE.source)
        return [y, wanted.norm.vectors, formed.z, ds, out]

    return run


def test_callers_in_several_threads_get_the_same_bits(three_threads):
    run = both_passes(native.Native())
    expected, wrong = run(), []

    def call() -> None:
        torch.set_num_threads(3)
        for _ in range(4):
            wrong.extend(1 for a, b in zip(run(), expected, strict=True) if not torch.equal(a, b))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_a_forked_process_computes_on(three_threads):
    """A data loader's workers are forked so, after the parent has used its threads."""
    run = both_passes(native.Native())
    expected = run()

    def again(answer) -> None:
        answer.put(all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True)))

    forking = multiprocessing.get_context("fork")
    answer = forking.SimpleQueue()
    child = forking.Process(target=again, args=(answer,))
    child.start()
    child.join(20)
    ended = child.exitcode
    child.kill()
    assert ended == 0, "the forked process hangs or crashed"
    assert answer.get()


def test_the_callers_rounding_holds_in_every_thread(three_threads):
    """torch.set_flush_denormal is the calling thread's: the others follow it, or bits would depend on who
    takes what."""
    engine = native.Native()
    both_passes(engine)()  # the threads are there
    tiny = activation(64, 16, 8, 8, seed=1) * 1e-39
    assert torch.set_flush_denormal(True)
    try:
        flushed, _ = engine.gradient([], [tiny, tiny], None, tuple(tiny.shape))
    finally:
        torch.set_flush_denormal(False)
    kept, _ = engine.gradient([], [tiny, tiny], None, tuple(tiny.shape))
    assert (flushed == 0).all() and (kept != 0).any()
