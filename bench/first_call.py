"""python -m bench.first_call: what the check of `fuse` costs, and what is left of it afterwards.

At the first call in each mode the traced network is compared with the model's own forward. Timed in turn, in
one process, with one thread by its processor time: a forward of the model's own in train mode, and that
check; then a training step after the first call, with the check and without it. Networks that a library
builds are left out where it is not installed.
Prints a table and writes bench/results/first-call-<device>-<date>.json."""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable

import torch
from torch import nn

from bench.architectures.catalogue import named
from bench.oracle import networks
from bench.records.rows import Record, Row, new
from bench.suite import clock
from fastbn import FastBNOnlyResNet, fuse
from fastbn.engine.fuse import Fused, fused_forward
from fastbn.errors import MachineError

CPU = torch.device("cpu")
RESNET20 = "resnet20"
NETWORKS = {RESNET20: 32, "torchvision-mobilenet_v2": 224, "torchvision-resnet18": 224}  # and their images
CHECK, FORWARD = "check", "stock-bn forward"


def network(name: str) -> nn.Module:
    """Return a network that is not fused, channels-last, in train mode. Raises MachineError where its library
    is not installed."""
    model = FastBNOnlyResNet(20, engine="stock") if name == RESNET20 else named([name])[0].build()
    return model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def images(batch: int, size: int) -> torch.Tensor:
    """Return images (N, 3, H, W), channels-last, the same each time."""
    x = networks.images(batch, size, size, dtype=torch.float32)
    return x.contiguous(memory_format=torch.channels_last)


def timed(record: Record, what: str, x: torch.Tensor, calls: dict[str, clock.Call], rounds: int) -> list[Row]:
    """Return the rows of these calls, taken in turn; the record has them too."""
    found, (batch, _, _, size) = clock.interleaved(calls, rounds, CPU, clock=clock.of_threads()), x.shape
    own = {"level": "check", "case": f"{what}, {size}×{size}, batch {batch}, fp32", "trains": "bn"}
    own |= {"size": size, "batch_size": batch}
    rows = [Row(provider=provider, **own).time(samples) for provider, samples in found.items()]
    record.rows += rows
    return rows


def check_of(fused: Fused, x: torch.Tensor) -> Callable[[], None]:
    """Return what a first call does besides what every call does and the trace."""
    _, program, tensors = fused.prepared((x,), {})
    form = fused.form
    assert program is not None and form is not None

    def check() -> None:
        program.checked.clear()
        fused._compare(program, form, tensors)

    return check


def first_call(record: Record, name: str, batches: list[int], rounds: int) -> None:
    """Measure a network's check beside its own forward."""
    own, size = network(name), NETWORKS[name]
    model = fuse(copy.deepcopy(own))
    fused = fused_forward(model)
    assert fused is not None
    for batch in batches:
        x = images(batch, size)
        model(x)
        calls = {FORWARD: lambda x=x: own(x), CHECK: check_of(fused, x)}
        forward, check = timed(record, name, x, calls, rounds)
        pairs = zip(check.samples or [], forward.samples or [], strict=True)
        ratio = statistics.median(checked / alone for checked, alone in pairs)
        check.more = {"forwards": round(ratio, 3)}
        times = "".join(f"{1e3 * (row.seconds or 0.0):12.2f}" for row in (forward, check))
        print(f"{check.case:58}{times}{ratio:10.2f}", flush=True)


def steps(record: Record, batch: int, rounds: int) -> None:
    """Measure a step after the first calls, with the check and without it."""
    x = images(batch, NETWORKS[RESNET20])

    def step(check: bool) -> Callable[[], None]:
        model = fuse(network(RESNET20), check=check)

        def run() -> None:
            model.zero_grad(set_to_none=True)
            model(x).square().mean().backward()

        run()
        run()
        return run

    calls = {f"check={check}": step(check) for check in (True, False)}
    for row in timed(record, f"step of {RESNET20}", x, calls, rounds):
        print(f"{row.case:58}{1e3 * (row.seconds or 0.0):12.2f}  {row.provider}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m bench.first_call", description=__doc__)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 2, 4, 8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    record = new()
    print(f"{'':58}{'forward, ms':>12}{'check, ms':>12}{'forwards':>10}")
    for name in asked.networks:
        try:
            first_call(record, name, asked.batch_sizes, asked.rounds)
        except MachineError as error:
            print(error, file=sys.stderr)
    steps(record, 128, 3 * asked.rounds)
    print(record.save(f"first-call-{record.device}"))


if __name__ == "__main__":
    main()
