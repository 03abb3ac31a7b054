"""Imported first by the tests that run Triton kernels: on the GPU where there is one, else in Triton's
interpreter on CPU tensors.

What is interpreted is decided when Triton is imported, so conftest.py sets TRITON_INTERPRET before any test
module is read."""

import pytest
import torch

try:
    import triton
    import triton.language as tl
except ImportError as why:
    pytest.skip(f"Triton cannot be imported: {why}", allow_module_level=True)

INTERPRETED = not isinstance(tl.zeros, triton.JITFunction)
if triton.knobs.runtime.interpret != INTERPRETED:
    pytest.skip("TRITON_INTERPRET was changed after Triton had been imported", allow_module_level=True)
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("there is no CUDA device, and TRITON_INTERPRET=1 is not set", allow_module_level=True)

DEVICE = "cpu" if INTERPRETED else "cuda"
