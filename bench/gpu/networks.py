"""The networks' checks of bench.gpu correctness: the Triton engine in ordinary use against stock PyTorch in
float64.

The networks are flip-free (β = ±6): no ReLU's sign depends on a rounding. Each is called several times: on
CUDA the first call runs as it is, the second is recorded, the later ones are replays. Allowed is a few of the
precision's own roundings, or three times what stock PyTorch in the same precision is off by."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu.measure import DEVICE, engine, offers_mixed
from bench.gpu.training import as_alone, captured
from bench.oracle.errors import relative
from bench.oracle.networks import flip_free, gradient, images, scattered
from bench.oracle.operations import Error
from bench.oracle.stock import flat_gradient, run, upstream
from bench.suite.steps import AUTOCAST, arithmetic
from fastbn import FastBNOnlyResNet, fuse

SIZES = {"cifar": (16, 32), "imagenet": (4, 64)}  # batch and height of the images
FP32, CALLS, DX = torch.float32, 4, "input's gradient"
HALVES = ("amp-fp16", "amp-bf16") if DEVICE.type == "cuda" else ("amp-fp16",)


def network(depth: int, family: str, small: bool = False) -> nn.Module:
    """Return a flip-free network of this depth, everything at no special value."""
    width = {"cifar": 16, "imagenet": 16 if depth < 50 else 8}[family] if small else None
    model = FastBNOnlyResNet(depth, width=width, family=family, engine="stock")
    return flip_free(scattered(model)).to(DEVICE)


def inputs(family: str, small: bool, seed: int, grad: bool = False) -> Tensor:
    batch, height = (2, 5) if small else SIZES[family]
    x = images(batch, height, height + 1 if small else height, seed=seed, dtype=FP32)
    return x.to(DEVICE).requires_grad_(grad)


def left(model: nn.Module, x: Tensor, precision: str = "fp32") -> dict[str, Tensor]:
    """Return what one forward and backward leave: the output, every parameter's gradient in one vector, the
    input's, the statistics."""
    found = run(model, x, inside=lambda: arithmetic(precision, DEVICE))
    (z,), (dx,) = found.outputs, found.inputs
    kept = {"output": z.detach(), "gradient": flat_gradient(found)} | ({} if dx is None else {DX: dx})
    moved = [b.flatten() for b in found.buffers.values() if b.is_floating_point()]
    counts = [b for b in found.buffers.values() if not b.dim()]
    return kept | {"statistics": torch.cat(moved), "batches": torch.stack(counts)}


def tolerance(precision: str, stock_error: float) -> float:
    dtype = AUTOCAST.get(precision, FP32)
    return max(2e-5 if dtype == FP32 else 4 * torch.finfo(dtype).eps, 3 * stock_error)


def like_stock(
    depth: int, family: str, small: bool, precision: str, training: bool, grad: bool = True
) -> Iterator[Error]:
    """Several calls, each with images of its own. Mixed, two kinds of halves, is held to what stock is off by
    in the shorter of them."""
    beside = HALVES[-1] if precision == "mixed" else precision
    model = network(depth, family, small).train(training)
    ours, theirs, wide = fuse(copy.deepcopy(model), "triton"), model, copy.deepcopy(model).double()
    for call in range(2 if small else CALLS):
        x = inputs(family, small, call + 1, grad)
        found, same = left(ours, x, precision), left(theirs, x, beside)
        expected = left(wide, x.detach().double().requires_grad_(grad))
        counts = found.pop("batches") != expected.pop("batches")
        yield f"counts of batches, call {call}", counts.sum().item(), 1
        for what, value in expected.items():
            most = tolerance(beside, relative(same[what], value))
            yield f"{what}, call {call}", relative(found[what], value), most


def overlapping(small: bool) -> Iterator[Error]:
    """Two forwards alive before either's backward, time and again: gradients add up."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    # else running statistics move in another order
    model = network(8 if small else 14, "cifar", small).eval()
    ours, wide = fuse(copy.deepcopy(model), "triton"), copy.deepcopy(model).double()
    for turn in range(2 if small else 4):
        for net in (ours, wide):
            net.zero_grad()
            dtype = next(net.parameters()).dtype
            alive = [net(inputs("cifar", small, seed).to(dtype)) for seed in (1, 2)]
            for z in alive:
                z.backward(*upstream([z]))
        yield f"gradient, turn {turn}", relative(gradient(ours), gradient(wide)), 2e-5


def scaled(small: bool) -> Iterator[Error]:
    """autocast to float16 with a GradScaler, as a user's loop has it: the unscaled gradient, and that the
    step is taken."""
    model = network(8 if small else 14, "cifar", small)
    ours, wide = fuse(copy.deepcopy(model), "triton"), copy.deepcopy(model).double()
    optimizer = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], 0.0)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**10)
    for step in range(2 if small else CALLS):
        x = inputs("cifar", small, step + 1)
        for net in (ours, model, wide):
            net.zero_grad()
            with arithmetic("amp-fp16" if net is not wide else "fp32", DEVICE):
                z = net(x if net is not wide else x.double())
            scaler.scale((z.double() * upstream([z.double()])[0]).mean()).backward()
        scale = scaler.get_scale()
        scaler.unscale_(optimizer)
        expected = gradient(wide) / scale
        most = tolerance("amp-fp16", relative(gradient(model) / scale, expected))
        yield f"gradient, step {step}", relative(gradient(ours), expected), most
        scaler.step(optimizer)
        scaler.update()
    yield "steps withheld", float(scaler.get_scale() < 2.0**10), 1


def without_gradients(small: bool) -> Iterator[Error]:
    """no_grad gives the bits that a call with gradients gives."""
    ours = fuse(network(8 if small else 14, "cifar", small).eval(), "triton")
    x = inputs("cifar", small, 1)
    expected = ours(x).detach()
    for call in range(3):
        with torch.no_grad():
            yield f"elements that differ, call {call}", (ours(x) != expected).sum().item(), 1


def repeats(
    small: bool, precision: str, depth: int = 20, family: str = "cifar", calls: int = CALLS, early=False
) -> Iterator[Error]:
    """Two networks of the same bits, each trained a few calls: the same bits; and a replay's are the first
    call's. early: the second's kernels begin before the one before them has ended."""
    model = network(8 if small else depth, family, small)
    x, runs = inputs(family, small, 1, True), []
    for early_too in (False, early):
        fused = fuse(copy.deepcopy(model), engine(early_too))
        runs.append([left(fused, x, precision) for _ in range(2 if small else calls)])
    for call, (first, second) in enumerate(zip(*runs, strict=True)):
        for what in first:
            yield f"elements that differ, {what}, call {call}", (first[what] != second[what]).sum().item(), 1
        # in training mode neither depends on what has moved
        for what in ("output", "gradient", DX):
            differ = (first[what] != runs[0][0][what]).sum().item()
            yield f"elements that differ from the first call's, {what}, call {call}", differ, 1


def network_checks(small: bool) -> list[tuple[str, Any]]:
    """Return the checks by name; those that a process with little time should make come first."""
    cuda = DEVICE.type == "cuda"
    depths = [("cifar", 8)] if small else [("cifar", 14), ("imagenet", 18), ("imagenet", 50), ("cifar", 110)]
    found: list[tuple[str, Any]] = []

    def add(name: str, check: Any, *arguments: Any, **more: Any) -> None:
        found.append((f"network: {name}", lambda: check(*arguments, **more)))

    stored = {precision: AUTOCAST.get(precision, FP32) for precision in ("fp32", *HALVES)}
    for (family, depth), training, precision in itertools.product(depths, (True, False), stored):
        mode, word = "train" if training else "eval", str(stored[precision]).removeprefix("torch.")
        add(f"{family} {depth}, {mode}, {word}", like_stock, depth, family, small, precision, training)
    for precision, some in (("mixed", depths), ("tf32", depths[: 2 * cuda])):
        for family, depth in some:
            add(f"{family} {depth}, train, {precision}", like_stock, depth, family, small, precision, True)
    for kind in ("fp32", *("bf16", "tf32") * cuda, *["mixed"] * (cuda and offers_mixed())):
        add(f"captured steps, {kind}", captured, small, kind)
        add(f"replicas, {kind}", as_alone, small, kind)
    library = {"depth": 18, "family": "imagenet"}
    for precision, dtype in stored.items():
        early = {"calls": 20, "early": True}
        add(f"repeated, {dtype}", repeats, small, precision)
        add(f"kernels that begin early, {dtype}", repeats, small, precision, depth=110, **early)
        if cuda:
            add(f"repeated with the library's convolutions, {dtype}", repeats, small, precision, **library)
            name = f"kernels that begin early beside the library's, {dtype}"
            add(name, repeats, small, precision, **library, **early)
    add("two forwards alive", overlapping, small)
    add("GradScaler", scaled, small)
    add("no_grad", without_gradients, small)
    return found
