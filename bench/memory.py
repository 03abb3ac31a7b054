"""python -m bench.memory --depth 32: the peak resident memory of a training step of stock PyTorch and of
fastbn, a fresh process each.

What counts is the peak over building the network and three steps, less what the process held with everything
imported and torch's threads and oneDNN at work. Prints a table and writes
bench/results/memory-resnet<depth>-<size>px-b<batch>-<engine>-<date>.json."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench.record import RESULTS, conditions
from bench.suite.cases import Case
from bench.suite.providers import Provider, providers
from fastbn.errors import MachineError

CPU = torch.device("cpu")
# the first packs or compiles, and allocates; the second has the optimizer's momentum from its start
STEPS = 3
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes(field: str) -> int:
    """VmRSS, what is resident now, or VmHWM, the most that was. (ru_maxrss also counts what the parent
    held at the fork.)"""
    if not STATUS.exists():
        raise MachineError(f"bench.memory reads {STATUS}, and finds none on {sys.platform}: run it on Linux")
    line = next(
        line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{field}:")
    )
    return int(line.split()[1]) * 1024


def reset_peak() -> bool:
    """Sets VmHWM back to VmRSS. False where that is forbidden: the peak then counts the imports too, which
    could only raise it."""
    try:
        RESET.write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def warm(compiled: bool) -> None:
    """What a process pays once, whatever its network: thread pools, oneDNN, autograd; and the compiler, if
    it is asked for."""
    weight = torch.randn(16, 16, 3, 3, requires_grad=True)

    def small(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, padding=1).relu().mean()

    (torch.compile(small) if compiled else small)(torch.randn(2, 16, 8, 8)).backward()
    torch.randn(64, 64) @ torch.randn(64, 64)


def measure(provider: Provider, case: Case) -> dict[str, Any]:
    """In a process of its own: bytes resident when idle, the peak beyond them, over all and from the second
    step on, and whether it was counted from idle on."""
    warm(provider.way == "compiled")
    idle = resident_bytes("VmRSS")
    reset = reset_peak()
    step = provider.make(case, CPU).step
    step()
    first = resident_bytes("VmHWM") - idle
    reset_peak()
    for _ in range(STEPS - 1):
        step()
    later = resident_bytes("VmHWM") - idle
    return {
        "idle_bytes": idle,
        "peak_less_idle_bytes": max(first, later),
        "later_less_idle_bytes": later,
        "counted_from_idle": reset,
    }


def fresh(provider: Provider, case: Case) -> dict[str, Any]:
    """The same by a new process, which prints it as one line."""
    network = ["--depth", case.depth, "--family", case.family, "--width", case.width]
    images = ["--batch-size", case.batch_size, "--size", case.size]
    compiled = ["--compiled"] * (provider.way == "compiled")
    command = [
        sys.executable,
        "-m",
        "bench.memory",
        *map(str, network + images),
        *compiled,
        "--only",
        provider.name,
    ]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.memory", description=__doc__)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--repeats", type=int, default=3, help="processes a provider, taken in turn; their median counts"
    )
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
    found = conditions()  # of the start: the commit may move while the processes run
    rows: list[dict[str, Any]] = [{"provider": name, "runs": []} for name in made]
    for _ in range(asked.repeats):
        for row in rows:
            row["runs"].append(fresh(made[row["provider"]], case))
    for row in rows:
        row |= {
            key: int(statistics.median(run[key] for run in row["runs"]))
            for key in row["runs"][0]
            if key.endswith("bytes")
        }
    if not all(run["counted_from_idle"] for row in rows for run in row["runs"]):
        print(f"{RESET} can't be written here: the peaks count the imports too", file=sys.stderr)
    least = {
        kind: min(r["peak_less_idle_bytes"] for r in rows if r["provider"].startswith(kind))
        for kind in ("stock", "stock-full")
    }
    header = f"{'':42}{'idle MB':>9}{'peak less idle MB':>19}{'least … most':>14}{'from step 2':>13}"
    print(f"{header}{'/ least stock':>15}{'/ least stock-full':>20}")
    for row in rows:
        peak, every = row["peak_less_idle_bytes"], [run["peak_less_idle_bytes"] for run in row["runs"]]
        row |= {
            "of_least_stock": round(peak / least["stock"], 3),
            "of_least_stock_all": round(peak / least["stock-full"], 3),
        }
        spread = f"{min(every) / 1e6:.0f} … {max(every) / 1e6:.0f}"
        print(
            f"{row['provider']:42}{row['idle_bytes'] / 1e6:9.0f}{peak / 1e6:19.1f}"
            f"{spread:>14}{row['later_less_idle_bytes'] / 1e6:13.1f}"
            f"{row['of_least_stock']:15.2f}{row['of_least_stock_all']:20.2f}"
        )
    record = {
        "depth": asked.depth,
        "batch_size": asked.batch_size,
        "size": asked.size,
        "precision": "fp32",
        **found,
    }
    record |= {"family": asked.family, "steps": STEPS, "rows": rows}
    engine = next(name for name in made if name.startswith("fastbn")).split()[1]
    target = (
        RESULTS
        / f"memory-resnet{asked.depth}-{asked.size}px-b{asked.batch_size}-{engine}-{found['date']}.json"
    )
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
