"""python -m fastbn.doctor: one page of plain text about this machine, for an issue report.

Exit code 0 where what `auto` would use works, 1 where it does not.
"""

from __future__ import annotations

import copy
import importlib.metadata
import platform
import time
from collections.abc import Iterator, Sequence

from fastbn.cli import command
from fastbn.cli.parser import Parser
from fastbn.machine.load_torch import load_torch

PRECISIONS = ("fp32", "bf16", "mixed")
PACKAGES = ("torch", "triton", "numpy", "safetensors", "timm", "torchvision", "torch_xla")
SECONDS = 5.0  # of the speed reading
OFF = 2e-4  # float32's rounding through a network of 8 layers that has no ReLU near its edge


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the page; return the exit code."""
    return command.run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    examples = (
        ("", "all of it, in about ten seconds"),
        ("--no-speed", "without the speed reading"),
        ("> machine.txt", "into a file, to send"),
    )
    parser = Parser("doctor", examples, description="Describe this machine on a page of plain text.")
    parser.add_argument("--no-speed", action="store_true", help="leave the speed reading out")
    asked = parser.parse_args(arguments)
    load_torch()
    works = True
    for title, lines in sections(asked.no_speed):
        command.show(title)
        for line in lines:
            command.show(f"    {line}")
            works = works and not line.startswith(WRONG)
    command.show(
        "what auto would use works" if works else "what auto would use does NOT work; --engine stock does"
    )
    return 0 if works else 1


WRONG = "WRONG: "


def sections(no_speed: bool = False) -> Iterator[tuple[str, Iterator[str]]]:
    """Yield each part of the page: its title, and its lines as they are found out."""
    yield "versions", versions()
    yield "device", device()
    yield "native engine", native()
    yield "engine that auto takes", engines()
    yield "Triton kernels' self-check", self_check()
    yield "result", result()
    if not no_speed:
        yield "speed", speed()


def versions() -> Iterator[str]:
    """Yield the versions of fastbn, Python and what it stands on."""
    from fastbn.version import VERSION

    yield f"fastbn {VERSION}, python {platform.python_version()}, {platform.system()} {platform.machine()}"
    for name in PACKAGES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} not installed"


def device() -> Iterator[str]:
    """Yield the processor, its instruction set, and the GPU with its capability and driver."""
    import torch

    from fastbn.machine import devices

    yield devices.describe(torch.device("cpu"))
    yield f"PyTorch's kernels: {torch.backends.cpu.get_cpu_capability()}"
    if not torch.cuda.is_available():
        yield "no CUDA device"
        return
    from fastbn.engine.triton.self_check import driver

    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        said = f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 1e9:.0f} GB"
        yield f"{said}, driver {driver()}"


def native() -> Iterator[str]:
    """Yield the compiler, the folder of built kernels, and whether they are there."""
    from fastbn.engine.native import build, compiler, kernel_cache
    from fastbn.errors import MachineError

    words = compiler.compiler()
    yield f"compiler: {' '.join(words) if words else 'none found (CXX, c++, g++, clang++)'}"
    yield f"kept in {kernel_cache.cache()}"
    try:
        build.library()
        yield "the CPU kernels are built and load"
    except MachineError as error:
        yield f"not available: {error}"


def engines() -> Iterator[str]:
    """Yield which engine `auto` takes here for each precision, and why."""
    import torch

    from fastbn.engine.select import choose
    from fastbn.errors import MachineError
    from fastbn.planning.precision import storage

    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for precision in PRECISIONS:
        if precision == "mixed" and here.type == "cpu":
            yield "mixed: not on a CPU"
            continue
        try:
            engine, why = choose("auto", here, storage(precision)[0])
            yield f"{precision}: {engine.name if engine else 'stock'} ({why})"
        except MachineError as error:
            yield f"{WRONG}{precision}: {error}"


def self_check() -> Iterator[str]:
    """Yield the result of every kernel that was checked on this GPU."""
    import torch

    if not torch.cuda.is_available():
        yield "not made: there is no CUDA device"
        return
    from fastbn.engine.triton import self_check as check

    for storages in check.STORAGES.values():
        for storage in storages:
            for name, wrong in check.checked(check.key(torch.device("cuda", 0)), storage).items():
                yield f"{name}: {wrong or 'right'}"


def result() -> Iterator[str]:
    """Yield how far a small network's gradient is from float64's, by what `auto` takes."""
    import torch

    from fastbn import FastBNOnlyResNet, fuse

    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = FastBNOnlyResNet(depth=8, engine="stock")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # no ReLU's sign depends on a rounding
                channel = torch.arange(module.num_features)
                module.bias.copy_(torch.where(channel % 3 > 0, 6.0, -6.0))
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
    gradients = []
    for net, dtype in ((fuse(copy.deepcopy(model).to(here)), torch.float32), (model.double(), torch.float64)):
        place = next(net.parameters()).device
        net(x.to(place, dtype)).backward(upstream.to(place, dtype))
        gradients.append(
            torch.cat([p.grad.flatten().double().cpu() for p in net.parameters() if p.grad is not None])
        )
    off = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    yield f"{'' if off < OFF else WRONG}ResNet-8's gradient is off float64's by {off:.1e}, allowed {OFF:.0e}"


def speed() -> Iterator[str]:
    """Yield milliseconds of a BatchNorm-only step of ResNet-20, batch 64, in turns with stock PyTorch."""
    import statistics

    import torch

    from fastbn import FastBNOnlyResNet, fuse
    from fastbn.machine import devices

    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.randn(64, 3, 32, 32).to(here).contiguous(memory_format=torch.channels_last)
    stock: torch.nn.Module = FastBNOnlyResNet(depth=20, engine="stock").to(here)
    stock = stock.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    networks = {"auto": fuse(copy.deepcopy(stock)), "stock, channels-last": stock}
    taken: dict[str, list[float]] = {name: [] for name in networks}
    for net in networks.values():
        net(x).square().mean().backward()  # builds, packs, compiles
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(taken["stock, channels-last"]) < 3:
        for name, net in networks.items():
            start = time.perf_counter()
            net(x).square().mean().backward()
            devices.carry_out(here, wait=True)
            taken[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(seconds) for name, seconds in taken.items()}
    ratio = middle["stock, channels-last"] / middle["auto"]
    yield "; ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in middle.items())
    how = "ResNet-20, batch 64, float32, forward and backward; a reading, no benchmark"
    yield f"auto is {ratio:.2f} times as fast ({how})"


if __name__ == "__main__":
    command.leave(main())
