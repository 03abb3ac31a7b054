"""python -m bench.gpu trial: the kernel level (bench/suite/kernels.py) by each algorithm of the Triton engine
beside the library's convolution alone: is the number of instructions the wall?"""

from __future__ import annotations

import itertools

from bench.gpu.measure import CAPABILITY, DEVICE, Sink
from bench.suite import clock, kernels
from bench.suite.cases import Blocks
from fastbn.engine.triton.engine import Triton
from fastbn.engine.triton.tuning import ROLLING, TAPS
from fastbn.machine.devices import free_unused

SHAPES, BATCHES, PRECISIONS = ((16, 32), (32, 16), (64, 8)), (128, 1024), ("bf16", "fp16")
SMALL = ((16, 6), (64, 4)), (2,), ("fp16",)  # the interpreter's bfloat16 multiplies bit patterns
OPERATIONS = ("conv2", "∇conv2")


def trial(sink: Sink, small: bool) -> int:
    """Measure every shape, batch and precision, and return the number of failures."""
    shapes, batches, precisions = SMALL if small else (SHAPES, BATCHES, PRECISIONS)
    rates = sink.record["machine"] = clock.machine_rates(DEVICE, small)
    own = {f"fastbn triton, {by}": Triton(CAPABILITY, by) for by in (ROLLING, TAPS)}
    providers = {kernels.STOCK: None, kernels.ALONE: None, **own}
    for precision, batch, (channels, size) in itertools.product(precisions, batches, shapes):
        blocks = Blocks(channels, size, batch, precision)
        for operation in OPERATIONS:
            found = kernels.measure(blocks, operation, DEVICE, rates, 1 if small else 30, providers)
            for row in found.values():
                sink.add(**row.told())
        free_unused(DEVICE)
    failures = [row for row in sink.rows if "failed" in row]
    sink.finish(failures=failures)
    return len(failures)
