"""The audit's table: a training step's launches, each compiled and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bench.audit.cost import Cost, compile_and_count
from bench.audit.launches import Launch, launches

UNKNOWN = Cost(0, 0, 0, 0, False, {}, "")  # of what is not compiled yet


@dataclass(frozen=True)
class Row:
    """One launch's cost."""

    launch: Launch
    cost: Cost = UNKNOWN

    @property
    def multiplies(self) -> bool:
        """Tell whether the matrix unit is what it is about."""
        return self.launch["PRECISION"] is not None and self.launch["KH"] != 0

    @property
    def title(self) -> str:
        """Return the kernel, its channels, and its image's width or its convolution's taps."""
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
        """Return what is formed on the way in; on the way back, what is added and masked."""
        own = self.launch
        if own["FORM"] is not None:
            parts = [("z", "scale-shift", "+ residual", "+ projection")[own["FORM"]]]
            parts += ["ReLU"] * (own["FUNCTION"] == "relu")
            written = [name for name in ("z", "mask") if own.reads(f"{name}_ptr")]
            return " ".join([*parts, *["→"] * bool(written), *written])
        if own["MASK"] is not None:
            added = own.reads("added_ptr") + own.reads("added_2_ptr")
            parts = [f"+ {added}" if added else "", ("", "mask from bits", "mask from y")[own["MASK"]]]
            parts += ["two BatchNorms"] * (own["YS"] == 2)
            return ", ".join(filter(None, parts)) or "plain"
        return ""

    @property
    def pixel(self) -> float:
        """Return the warp-instructions per output pixel, of all its channels."""
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
        """Return the table's line."""
        cost, warps = self.cost, dict(self.launch.options)["num_warps"]
        each = f"{self.pixel:.1f}{' static' if cost.loops else ''}"
        figures = [cost.registers, cost.spills, f"{cost.shared / 1024:.0f}", warps, each]
        figures += [cost.matrix, cost.wide_loads]
        return " | ".join(["", self.title, self.form, *map(str, figures), ""]).strip()


COLUMNS = ["kernel, channels, image or taps", "form or mask", "registers", "spilled, B", "shared, KiB"]
COLUMNS += ["warps", "warp-instructions a pixel", "matrix", "16-byte loads"]
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def compiled_rows(
    family: str,
    dtype: str,
    capability: int,
    wanted: Callable[[Row], bool] = lambda row: True,
    dependent: bool = False,
) -> Iterator[Row]:
    """Yield a training step's launches compiled, those that are wanted, one of each title and form."""
    seen: set[tuple[str, str]] = set()
    for found in launches(family, dtype, capability, dependent):
        row = Row(found)
        # another differs in an argument that costs nothing, as the stride
        if (row.title, row.form) not in seen and wanted(row):
            seen.add((row.title, row.form))
            asked = found.kernel, dict(found.signature), dict(found.constexprs), dict(found.options)
            yield Row(found, compile_and_count(*asked, capability))


def summary(rows: Iterable[Row]) -> str:
    """Return the worst of them in words."""
    costs = [row.cost for row in rows]
    spilled, shared = max(cost.spills for cost in costs), max(cost.shared for cost in costs)
    return f"{len(costs)} kernels, at most {spilled} B spilled and {shared / 1024:.0f} KiB shared"
