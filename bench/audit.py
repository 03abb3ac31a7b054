"""What a Triton kernel costs on a GPU that need not be there: cross-compiled, disassembled, counted.

    cost = compile_and_count(kernel, {"x_ptr": "*fp16", "n": "i32"}, {"BLOCK": 1024}, {"num_warps": 4},
    capability=90) cost.registers, cost.spills, cost.matrix, cost.wide_loads

    python -m bench.audit [--capability 90] [--family cifar|imagenet] [--dtype bf16] [--only rolling]
    [--dependent]
    python -m bench.audit --write      bf16 on sm_90 in full, the other capabilities in two lines each, into
    kernels/README.md

The launches are the engine's own, noted on fake tensors as it walks a network forward and backward
(bench/launches.py).
Where loops are unrolled the machine code holds each instruction once for each time it runs: warps ×
instructions ÷ pixels is then the work, in warp-instructions a pixel; a multiprocessor issues four a clock.
What follows the first atomic is left out of it: it merges the programs' statistics, which only a few of the
programs do."""

from __future__ import annotations

import argparse
import collections
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from bench.launches import DTYPES, NETWORKS, Launch, launches

# Ampere, Ada, Hopper, Blackwell; 86, 89 and 120 with 99 KB of shared memory
CAPABILITIES = (80, 86, 89, 90, 100, 120)
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB of shared memory that a program can have
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)([^;]*);")
README = Path(__file__).parents[1] / "kernels" / "README.md"
MARKERS = "<!-- the audit's -->", "<!-- the audit's end -->"


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
        """How many instructions' names begin with one of these."""
        return sum(n for name, n in self.counts.items() if name.startswith(prefixes))

    @property
    def matrix(self) -> int:
        """The matrix unit's instructions, which every generation names otherwise."""
        return self.count("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "UTCOMMA")

    @property
    def wide_loads(self) -> int:
        """Loads of 16 bytes a thread, into registers or into shared memory."""
        return sum(
            n
            for name, n in self.counts.items()
            if name.startswith(("LDG.", "LDGSTS.")) and "128" in name.split(".")
        )


def compile_and_count(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    options: Mapping[str, Any],
    capability: int,
) -> Cost:
    """Compiles a @triton.jit function for `capability` (90: sm_90) and reads its machine code. Needs no GPU.

    signature   what the arguments are: "*fp32", "i32", "fp32", …; pointers are taken to be aligned, as those
                of whole tensors are, and an integer divisible by 16 is "i32:16"
    constexprs  the values of the rest; None for a pointer that is left out
    options     num_warps, num_stages, enable_fp_fusion, …

    Raises TypeError where the kernel is an interpreted one, or its arguments are not exactly these.
    """
    if not isinstance(kernel, JITFunction):
        raise TypeError(
            f"the kernel must come from triton.jit, got {type(kernel).__name__}; compile where "
            "TRITON_INTERPRET is unset"
        )
    given = {*signature, *constexprs}
    if given != set(kernel.arg_names) or len(given) != len(signature) + len(constexprs):
        raise TypeError(
            f"{kernel.__name__} takes {kernel.arg_names}, got a signature of {[*signature]} and constexprs "
            f"{[*constexprs]}"
        )
    types = {
        name: "constexpr" if name in constexprs else signature[name].removesuffix(":16")
        for name in kernel.arg_names
    }
    aligned = {name for name, kind in signature.items() if kind.startswith("*") or kind.endswith(":16")}
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in aligned
    }
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
    return Cost(
        int(found[1]),
        int(found[2]),
        compiled.metadata.shared,
        len(listed),
        loops,
        dict(counts),
        compiled.asm["ptx"],
    )


def disassembler(*arguments: str) -> str:
    """What Triton's own cuobjdump says."""
    command = [triton.knobs.nvidia.cuobjdump.path, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


UNKNOWN = Cost(0, 0, 0, 0, False, {}, "")  # of what is not compiled yet


@dataclass(frozen=True)
class Row:
    """One launch's cost."""

    launch: Launch
    cost: Cost = UNKNOWN

    @property
    def multiplies(self) -> bool:
        """Whether the matrix unit is what it is about."""
        return self.launch["PRECISION"] is not None and self.launch["KH"] != 0

    @property
    def title(self) -> str:
        """The kernel, its channels, and its image's width or its convolution's taps."""
        own, c = self.launch, self.launch["C"]
        name = own.kernel.__name__.removesuffix("_kernel")
        if own["PAIR"]:
            return f"{name} {c}, {own['H']}²"
        if not own["OC"]:
            return f"{name} {c}"
        taps = f"{own['KH']}×{own['KW']}/{own['SH']}" if own["KH"] else "no convolution"
        return f"{name} {c}→{own['OC']}, {taps}" if "forward" in name else f"{name} {own['OC']}→{c}, {taps}"

    @property
    def form(self) -> str:
        """What is formed on the way in; on the way back, what is added and masked."""
        own = self.launch
        if own["FORM"] is not None:
            parts = [
                ("z", "scale-shift", "+ residual", "+ projection")[own["FORM"]],
                "ReLU" if own["RELU"] else "",
            ]
            written = [name for name in ("z", "mask") if own.reads(f"{name}_ptr")]
            return " ".join([*filter(None, parts), *(["→", *written] if written else [])])
        if own["MASK"] is not None:
            added = own.reads("added_ptr") + own.reads("added_2_ptr")
            mask = ("", "mask from bits", "mask from y")[own["MASK"]]
            return (
                ", ".join(
                    filter(
                        None,
                        [f"+ {added}" if added else "", mask, "two BatchNorms" if own["YS"] == 2 else ""],
                    )
                )
                or "plain"
            )
        return ""

    @property
    def pixel(self) -> float:
        """Warp-instructions an output pixel, of all its channels."""
        own = self.launch
        columns = 1.0
        if own["PAIR"]:
            pixels = own["IMAGES"] * own["ROWS"] * own["STRIP"] * own["PAIR"]
        elif not own["BLOCK_M"]:
            return 0.0  # a few numbers a channel
        else:
            block = own["BLOCK_N"] or own["BLOCK_C"]
            written = own["OC"] if own["OC"] and "forward" in own.kernel.__name__ else own["C"]
            pixels, columns = own["BLOCK_M"] * (own["LOOP"] or 1), -(-written // block)
        return self.cost.instructions * dict(own.options)["num_warps"] * columns / pixels

    def line(self) -> str:
        """The table's."""
        cost, warps = self.cost, dict(self.launch.options)["num_warps"]
        figures = (
            cost.registers, cost.spills, f"{cost.shared / 1024:.0f}", warps,
            f"{self.pixel:.1f}{' static' if cost.loops else ''}",
            cost.matrix, cost.wide_loads,
        )  # fmt: skip
        return " | ".join(["", self.title, self.form, *map(str, figures), ""]).strip()


COLUMNS = (
    "kernel, channels, image or taps", "form or mask", "registers", "spilled, B", "shared, KiB", "warps",
    "warp-instructions a pixel",
    "matrix", "16-byte loads",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def compiled_rows(
    family: str,
    dtype: str,
    capability: int,
    wanted: Callable[[Row], bool] = lambda row: True,
    **switches: bool,
) -> Iterator[Row]:
    """A training step's launches compiled, those that are wanted, one of each title and form."""
    seen: set[tuple[str, str]] = set()
    for found in launches(family, dtype, capability, **switches):
        row = Row(found)
        # another differs in an argument that costs nothing, as the stride
        if (row.title, row.form) not in seen and wanted(row):
            seen.add((row.title, row.form))
            asked = found.kernel, dict(found.signature), dict(found.constexprs), dict(found.options)
            yield Row(found, compile_and_count(*asked, capability))


def summary(rows: Iterable[Row]) -> str:
    """The worst of them."""
    costs = [row.cost for row in rows]
    spilled, shared = max(cost.spills for cost in costs), max(cost.shared for cost in costs)
    return f"{len(costs)} kernels, at most {spilled} B spilled and {shared / 1024:.0f} KiB shared"


def report(capabilities: Iterable[int]) -> Iterator[str]:
    """What kernels/README.md holds between its markers, by line."""
    yield "On sm_90, CIFAR's, activations and gradients in bf16:\n"
    yield HEAD
    for row in compiled_rows("cifar", "bf16", 90):
        yield row.line()
    yield f"\n- sm_90, bf16, ImageNet's: {summary(compiled_rows('imagenet', 'bf16', 90))} of {SHARED[90]}"
    for capability in capabilities:
        for dtype in ("fp16", "tf32", "fp32"):
            found = summary(compiled_rows("cifar", dtype, capability))
            yield f"- sm_{capability}, {dtype}: {found} of {SHARED[capability]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="What the Triton engine's kernels cost, read off machine code."
    )
    parser.add_argument("--capability", type=int, default=90, choices=CAPABILITIES)
    parser.add_argument("--family", default="cifar", choices=NETWORKS)
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--only", default="", help="kernels whose names have this in them")
    parser.add_argument(
        "--dependent",
        action="store_true",
        help="launched to begin early, as kernels/triton/early_launch.py says",
    )
    parser.add_argument("--write", action="store_true", help="write kernels/README.md's tables")
    parser.add_argument(
        "--elsewhere",
        type=int,
        nargs="*",
        default=CAPABILITIES,
        help="with --write: the others' capabilities",
    )
    asked = parser.parse_args()
    if asked.write:
        before, _, rest = README.read_text(encoding="utf-8").partition(MARKERS[0])
        lines = []
        for line in report(asked.elsewhere):
            print(line, file=sys.stderr)
            lines.append(line)
        README.write_text(
            "\n".join([before + MARKERS[0], *lines, MARKERS[1] + rest.partition(MARKERS[1])[2]]),
            encoding="utf-8",
        )
        return
    print(HEAD)
    rows = []
    switches = {"dependent": asked.dependent}
    for row in compiled_rows(
        asked.family, asked.dtype, asked.capability, lambda row: asked.only in row.title, **switches
    ):
        print(row.line(), flush=True)
        rows.append(row)
    print(f"\nsm_{asked.capability}, {asked.dtype}: {summary(rows)}")


if __name__ == "__main__":
    main()
