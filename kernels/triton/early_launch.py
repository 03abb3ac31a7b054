"""early_launch: programmatic dependent launch, from compute capability 9.0 on. A kernel launched so begins
while the one before it in the stream still ends, and waits for it before it reads what others wrote, or
writes.

Contract   Every program of a kernel that is launched so calls `wait`, which returns when the kernel before
           has ended and all that it wrote can be read: since that one has waited too, everything before it
           has ended as well. Above `wait` stand index arithmetic and loads of frozen weights alone. A kernel
           that is not launched so (PyTorch's, a copy) waits as a whole, as ever.
Weights    are packed by PyTorch's kernels, whose end a load above `wait` would not await: the engine has them
           followed by an ordinary launch, and whatever begins after that one has begun finds them ended.
Bits       the same with it and without.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def begin(PDL: tl.constexpr):
    """Let the next kernel begin as soon as there is room beside this one."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait(PDL: tl.constexpr):
    """Wait for the kernel before."""
    if PDL:
        tl.extra.cuda.gdc_wait()


def options(dependent: bool) -> dict[str, bool]:
    """Return a launch's options."""
    return {"PDL": True, "launch_pdl": True} if dependent else {"PDL": False}
