"""What a Triton kernel costs on a GPU that need not be there: cross-compiled, disassembled, counted.

    cost = compile_and_count(kernel, {"x_ptr": "*fp16", "n": "i32"}, {"BLOCK": 1024}, {"num_warps": 4}, capability=90)
    cost.registers, cost.spills, cost.count("HGMMA"), cost.count("LDG.E.128")

Where loops are unrolled the machine code holds each instruction once for each time it runs: warps × instructions ÷ pixels is then
the work, in warp-instructions a pixel; a multiprocessor issues four a clock.
"""

from __future__ import annotations

import collections
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

CAPABILITIES = (80, 86, 89, 90, 100, 120)  # Ampere, Ada, Hopper, Blackwell; 86, 89 and 120 with 99 KB of shared memory
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)")


@dataclass(frozen=True)
class Cost:
    """One kernel's machine code for one capability."""

    registers: int  # a thread
    spills: int  # bytes of local memory a thread: registers spilled
    shared: int  # bytes of shared memory a program
    instructions: int
    counts: dict[str, int]  # by the machine's full name, as in HGMMA.64x16x16.F32
    ptx: str

    def count(self, *prefixes: str) -> int:
        """How many instructions' names begin with one of these."""
        return sum(n for name, n in self.counts.items() if name.startswith(prefixes))


def compile_and_count(
    kernel: Any, signature: Mapping[str, str], constexprs: Mapping[str, Any], options: Mapping[str, Any], capability: int
) -> Cost:
    """Compiles a @triton.jit function for `capability` (90: sm_90) and reads its machine code. Needs no GPU.

    signature   what the arguments are: "*fp32", "i32", "fp32", …; pointers are taken to be aligned, as those of whole tensors are,
                and an integer divisible by 16 is "i32:16"
    constexprs  the values of the rest; None for a pointer that is left out
    options     num_warps, num_stages, enable_fp_fusion, …

    Raises TypeError where the kernel is an interpreted one, or its arguments are not exactly these.
    """
    if not isinstance(kernel, JITFunction):
        raise TypeError(f"the kernel must come from triton.jit, got {type(kernel).__name__}; compile where TRITON_INTERPRET is unset")
    given = {*signature, *constexprs}
    if given != set(kernel.arg_names) or len(given) != len(signature) + len(constexprs):
        raise TypeError(f"{kernel.__name__} takes {kernel.arg_names}, got a signature of {[*signature]} and constexprs {[*constexprs]}")
    types = {name: "constexpr" if name in constexprs else signature[name].removesuffix(":16") for name in kernel.arg_names}
    aligned = {name for name, kind in signature.items() if kind.startswith("*") or kind.endswith(":16")}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in aligned}
    source = ASTSource(kernel, types, dict(constexprs), attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage, code = disassembler("-res-usage", cubin.name), disassembler("-sass", cubin.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump's usage of {kernel.__name__} names no registers: {usage!r}")
    counts = collections.Counter(name for name in INSTRUCTION.findall(code) if name != "NOP")  # which pads the code's end
    return Cost(int(found[1]), int(found[2]), compiled.metadata.shared, counts.total(), dict(counts), compiled.asm["ptx"])


def disassembler(*arguments: str) -> str:
    """What Triton's own cuobjdump says."""
    command = [triton.knobs.nvidia.cuobjdump.path, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
