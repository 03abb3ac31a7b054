"""python -m bench.memory --depth 32: the peak resident memory of a training step of stock PyTorch and of
fastbn, a fresh process each.

What counts is the peak over building the network and three steps, less what the process held with everything
imported, torch's threads and oneDNN at work, and fastbn's kernels loaded where it is measured. Prints a
table and writes
bench/results/memory-resnet<depth>-<size>px-b<batch>-<engine>-<date>.json."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from typing import Any

import torch

from bench.records.rows import SHAPE, new
from bench.suite.cases import Case
from bench.suite.process import RESET, in_turn, reset_peak, resident_bytes, told, warm, words
from bench.suite.providers import providers
from bench.suite.steps import Provider

CPU = torch.device("cpu")
# the first packs or compiles, and allocates; the second has the optimizer's momentum from its start
STEPS = 3
PEAK = "peak_less_idle_bytes"


def measure(provider: Provider, case: Case) -> dict[str, Any]:
    """Return, in a process of its own, bytes resident when idle, the peak beyond them, over all and from the
    second step on, and whether it was counted from idle on."""
    warm(provider.way == "compiled", not provider.stock)
    idle = resident_bytes("VmRSS")
    reset = reset_peak()
    step = provider.make(case, CPU).step
    step()
    first = resident_bytes("VmHWM") - idle
    reset_peak()
    for _ in range(STEPS - 1):
        step()
    later = resident_bytes("VmHWM") - idle
    found = {"idle_bytes": idle, PEAK: max(first, later), "later_less_idle_bytes": later}
    return found | {"counted_from_idle": reset}


def fresh(provider: Provider, case: Case) -> dict[str, Any]:
    """Return the same by a new process."""
    own = {name: getattr(case, name) for name in SHAPE if name != "precision"}
    return told("bench.memory", *words(**own, compiled=provider.way == "compiled", only=provider.name))


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.memory", description=__doc__)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    what = "processes per provider, taken in turn; their median counts"
    parser.add_argument("--repeats", type=int, default=3, help=what)
    parser.add_argument("--family", default=None)
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--size", type=int, default=32, help="of the images")
    parser.add_argument("--compiled", action="store_true", help="stock under torch.compile too")
    parser.add_argument("--only", help="one provider, in this process: prints its figures as a line of JSON")
    asked = parser.parse_args()
    case = Case(asked.depth, asked.batch_size, asked.size, asked.family, asked.width)
    made = {provider.name: provider for provider in providers(case, CPU, asked.compiled)}
    if asked.only is not None:
        if asked.only not in made:
            parser.error(f"--only is one of {', '.join(map(repr, made))}; got {asked.only!r}")
        print(json.dumps(measure(made[asked.only], case)))
        return
    record = new()  # its conditions are those of the start: the commit may move while the processes run
    runs = in_turn({name: partial(fresh, provider, case) for name, provider in made.items()}, asked.repeats)
    if not all(run["counted_from_idle"] for own in runs.values() for run in own):
        print(f"{RESET} can't be written here: the peaks count the imports too", file=sys.stderr)

    def middle(name: str, key: str) -> int:
        return int(statistics.median(run[key] for run in runs[name]))

    kinds = ("stock", "stock-full")
    least = [min(middle(name, PEAK) for name in made if name.startswith(kind)) for kind in kinds]
    header = f"{'':42}{'idle MB':>9}{'peak less idle MB':>19}{'least … most':>14}{'from step 2':>13}"
    print(f"{header}{'/ least stock':>15}{'/ least stock-full':>20}")
    for name, provider in made.items():
        row, every = provider.row("memory", case), [run[PEAK] for run in runs[name]]
        row.peak_memory_bytes = peak = middle(name, PEAK)
        row.more = {key: middle(name, key) for key in ("idle_bytes", "later_less_idle_bytes")}
        row.more |= {"steps": STEPS, "runs": runs[name]}
        record.rows.append(row)
        spread = f"{min(every) / 1e6:.0f} … {max(every) / 1e6:.0f}"
        idle, later = (row.more[key] / 1e6 for key in ("idle_bytes", "later_less_idle_bytes"))
        figures = f"{idle:9.0f}{peak / 1e6:19.1f}{spread:>14}{later:13.1f}"
        print(f"{name:42}{figures}{peak / least[0]:15.2f}{peak / least[1]:20.2f}")
    engine = next(name for name in made if name.startswith("fastbn")).split()[1]
    print(record.save(f"memory-resnet{asked.depth}-{asked.size}px-b{asked.batch_size}-{engine}"))


if __name__ == "__main__":
    main()
