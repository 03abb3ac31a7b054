"""A Triton kernel compiled for a GPU that need not be there, and its machine code counted.

cost = compile_and_count(kernel, {"x_ptr": "*fp16", "n": "i32"}, {"BLOCK": 1024}, {"num_warps": 4}, 90)
cost.registers, cost.spills, cost.matrix, cost.wide_loads
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

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)([^;]*);")


@dataclass(frozen=True)
class Cost:
    """One kernel's machine code for one capability."""

    registers: int  # a thread
    spills: int  # bytes of local memory a thread: registers spilled
    shared: int  # bytes of shared memory a program
    instructions: int
    loops: bool  # something jumps back: what is in there runs more than once
    counts: dict[str, int]  # by the machine's full name, as in HGMMA.64x16x16.F32
    ptx: str

    def count(self, *prefixes: str) -> int:
        """Return how many instructions' names begin with one of these."""
        return sum(n for name, n in self.counts.items() if name.startswith(prefixes))

    @property
    def matrix(self) -> int:
        """Return the number of the matrix unit's instructions, which every generation names otherwise."""
        return self.count("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "UTCOMMA")

    @property
    def wide_loads(self) -> int:
        """Return the number of loads of 16 bytes a thread, into registers or into shared memory."""
        loads = {name: n for name, n in self.counts.items() if name.startswith(("LDG.", "LDGSTS."))}
        return sum(n for name, n in loads.items() if "128" in name.split("."))


def compile_and_count(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    options: Mapping[str, Any],
    capability: int,
) -> Cost:
    """Compile a @triton.jit function for `capability` (90: sm_90) and read its machine code. Needs no GPU.

    signature   what the arguments are: "*fp32", "i32", "fp32", …; pointers are taken to be aligned, as those
                of whole tensors are, and an integer divisible by 16 is "i32:16"
    constexprs  the values of the rest; None for a pointer that is left out
    options     num_warps, num_stages, enable_fp_fusion, …

    Raises TypeError where the kernel is an interpreted one, or its arguments are not exactly these.
    """
    if not isinstance(kernel, JITFunction):
        remedy = "compile where TRITON_INTERPRET is unset"
        raise TypeError(f"the kernel must come from triton.jit, got {type(kernel).__name__}; {remedy}")
    names, given = kernel.arg_names, [*signature, *constexprs]
    if sorted(given) != sorted(names):
        raise TypeError(f"{kernel.__name__} takes {names}, got a signature and constexprs of {given}")
    kinds = dict.fromkeys(constexprs, "constexpr") | signature
    types = {name: kinds[name].removesuffix(":16") for name in names}
    aligned = {name for name, kind in kinds.items() if kind.startswith("*") or kind.endswith(":16")}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in aligned}
    source = ASTSource(kernel, types, dict(constexprs), attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage, code = disassembler("-res-usage", cubin.name), disassembler("-sass", cubin.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump's usage of {kernel.__name__} names no registers: {usage!r}")
    # which pads the code's end
    listed = [(int(at, 16), name, rest) for at, name, rest in INSTRUCTION.findall(code) if name != "NOP"]
    counts = collections.Counter(name for _, name, _ in listed)
    jumps = [(at, re.search(r"0x([0-9a-f]+)", rest)) for at, name, rest in listed if name.startswith("BRA")]
    loops = any(to is not None and int(to[1], 16) < at for at, to in jumps)
    registers, spills, shared = int(found[1]), int(found[2]), compiled.metadata.shared
    return Cost(registers, spills, shared, len(listed), loops, dict(counts), compiled.asm["ptx"])


def disassembler(*arguments: str) -> str:
    """Return what Triton's own cuobjdump says."""
    command = [triton.knobs.nvidia.cuobjdump.path, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
