"""Every engine's operations are held to this, one by one: the same formula in float64, on odd shapes, fed
the same rounded inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.oracle.errors import relative
from fastbn.engine.interface import BackpropPath, Engine, LazyActivation, Mask, NormTarget, NormVectors
from fastbn.graph.activations import IDENTITY, RELU
from fastbn.graph.regions import Conv

WIDE = torch.float64


@dataclasses.dataclass(frozen=True)
class Case:
    why: str
    n: int
    h: int
    w: int
    c: int
    oc: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1

    def conv(self) -> Conv:
        both = ((x, x) for x in (self.kernel, self.stride, self.padding, self.dilation))
        return Conv("conv", "norm", 0, self.c, self.oc, *both, self.groups, 0)

    @property
    def source(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    def weight(self) -> Tensor:
        return draw(self.oc, self.c // self.groups, self.kernel, self.kernel, seed=5) / self.c**0.5


SOURCES = ("formed", "scale-shift-relu", "residual", "projection")
MASKS = ("saved", "again", "linear", "none")


def draw(*shape: int, seed: int, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def activation(
    *shape: int, seed: int, dtype: torch.dtype = torch.float32, mean: float = 0.5, device: str = "cpu"
) -> Tensor:
    """Return a channels-last tensor of this shape (N, C, H, W)."""
    n, c, h, w = shape
    return (draw(n, h, w, c, seed=seed, device=device) + mean).to(dtype).permute(0, 3, 1, 2)


def norm(c: int, seed: int, batch: bool = True, device: str = "cpu") -> NormVectors:
    return NormVectors(draw(4, c, seed=seed, device=device), batch)


def target(c: int, batch: bool = True, seed: int = 20, device: str = "cpu") -> NormTarget:
    """Return a BatchNorm's request, its vectors not written yet."""
    module = nn.BatchNorm2d(c).to(device)
    with torch.no_grad():
        for i, t in enumerate((module.weight, module.bias, module.running_mean, module.running_var)):
            t.copy_(draw(c, seed=seed + i))
        module.running_var.abs_()
    return NormTarget(module.train(batch), None, NormVectors(unwritten(4, c, device), batch))


def affine(c: int, device: str = "cpu") -> Tensor:
    return unwritten(2, c, device)


def unwritten(rows: int, c: int, device: str) -> Tensor:
    """Return vectors (rows, c) full of NaN, more of it beside them."""
    return torch.full((rows, c + 3), float("nan"), device=device)[:, 1 : c + 1]


def channels(t: Tensor) -> Tensor:
    return t.to(WIDE).view(1, -1, 1, 1)


def rows(t: Tensor) -> Tensor:
    return t.to(WIDE).permute(0, 2, 3, 1).reshape(-1, t.shape[1])


def source(
    kind: str, case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor | LazyActivation, Tensor]:
    """Return a convolution's source, and z in float64."""
    y, first = activation(*case.source, seed=1, dtype=dtype, device=device), norm(case.c, 2, device=device)
    if kind == "formed":
        return y, y.to(WIDE)
    z = y.to(WIDE) * channels(first.scale) + channels(first.shift)
    if kind == "scale-shift-relu":
        return LazyActivation((y,), (first,), None, RELU), z.relu()
    other = activation(*case.source, seed=3, dtype=dtype, device=device)
    if kind == "residual":
        return LazyActivation((y,), (first,), other, RELU), (z + other.to(WIDE)).relu()
    second = norm(case.c, 4, device=device)
    z = z + other.to(WIDE) * channels(second.scale) + channels(second.shift)
    return LazyActivation((y, other), (first, second), None, RELU), z.relu()


Error = tuple[str, float, float]  # of what, how large, and what it must stay below


def check(errors: Iterator[Error]) -> None:
    """Assert that every error is below what it must stay below."""
    for what, found, most in errors:
        assert found < most, f"{what}: {found:.1e}, allowed {most:.1e}"


def forward_errors(
    engine: Engine,
    case: Case,
    kind: str,
    dtype: torch.dtype,
    tolerance: float,
    batch: bool = True,
    device: str = "cpu",
    exact: float = 1e-6,
) -> Iterator[Error]:
    """Yield the errors of y, z, the mask, the target's vectors and the running statistics.

    tolerance: of y; the statistics are those of the stored y. exact: the tolerance of what is float32 in
    every precision."""
    conv, (read, z) = case.conv(), source(kind, case, dtype, device)
    weight = case.weight().to(device, dtype)
    wanted = target(case.oc, batch, device=device)
    before = [wanted.module.running_mean.to(WIDE), wanted.module.running_var.to(WIDE)]
    y, formed = engine.convolve(conv, engine.pack(conv, weight, dtype), read, True, True, wanted)
    engine.ready(wanted.norm)
    # what the convolution reads is stored precision
    kept = z.to(dtype).to(WIDE) if kind == "formed" or dtype != torch.float32 else z
    expected = F.conv2d(kept, weight.to(WIDE), None, conv.stride, conv.padding, conv.dilation, conv.groups)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    yield "y", relative(y, expected), tolerance
    found = [rows(y).mean(0), rows(y).var(0, correction=0)] if batch else before
    mean, rstd, scale, shift = wanted.norm.vectors
    module = wanted.module
    inverse = 1 / (found[1] + module.eps).sqrt()
    yield "mean", relative(mean, found[0]), exact
    yield "rstd", relative(rstd, inverse), exact
    yield "scale", relative(scale, inverse * module.weight.detach()), exact
    moved = module.bias.detach() - found[0] * inverse * module.weight.detach()
    yield "shift", relative(shift, moved), 2 * exact
    m = y.numel() // case.oc
    moved = [found[0], found[1] * m / (m - 1)] if batch and m > 1 else before
    for what, old, new in zip(("running_mean", "running_var"), before, moved, strict=True):
        yield what, relative(getattr(module, what), old + 0.1 * (new - old)), exact
    assert int(module.num_batches_tracked) == int(batch)
    assert (formed is None) == (kind == "formed")
    if formed is not None:
        yield "z", relative(formed.z, z), max(exact, torch.finfo(dtype).eps)
        assert isinstance(read, LazyActivation)
        mask = Mask(RELU, formed.mask, read.ys, read.norms, tuple(affine(case.c, device) for _ in read.ys))
        opened, _ = engine.gradient([], [torch.ones_like(formed.z)], mask, case.source)
        yield "elements of the mask", ((opened != 0) != (formed.z != 0)).sum().item(), 1


def gradient_errors(
    engine: Engine,
    case: Case,
    masked: str,
    dtype: torch.dtype,
    tolerance: float,
    batch: bool = True,
    device: str = "cpu",
    exact: float = 2e-6,
) -> Iterator[Error]:
    """Yield the errors of one path and an added term, masked, with dγ and dβ and the coefficients of the raw
    outputs that the value was made of."""
    conv, size = case.conv(), case.source
    weight = case.weight().to(device, dtype)
    out = conv.shape(size)
    ds, y, added = (
        activation(*s, seed=seed, dtype=dtype, device=device) for s, seed in ((out, 6), (out, 7), (size, 8))
    )
    c1, c2, c0 = draw(3, case.oc, seed=9, device=device)
    given = (c1, c2, c0) if batch else (c1, None, None)
    path = BackpropPath(conv, engine.pack(conv, weight, dtype), ds, y, given)
    ys = tuple(activation(*size, seed=s, dtype=dtype, device=device) for s in (10, 11))
    norms = (norm(case.c, 12, batch, device), norm(case.c, 13, batch, device))
    saved = engine.form(LazyActivation(ys, norms, None, RELU), True)
    outs = (affine(case.c, device), affine(case.c, device))
    mask = {
        "saved": Mask(RELU, saved.mask, ys, norms, outs),
        "again": Mask(RELU, None, ys[:1], norms[:1], outs[:1]),
        "linear": Mask(IDENTITY, None, ys[:1], norms[:1], outs[:1]),
        "none": None,
    }[masked]
    found, coefficients = engine.gradient([path], [added], mask, size)

    dy = ds.to(WIDE) * channels(c1) + (y.to(WIDE) * channels(c2) + channels(c0) if batch else 0)
    dy = dy.to(dtype).to(WIDE) if dtype != torch.float32 else dy  # as the matrix unit reads it
    geometry = conv.stride, conv.padding, conv.dilation, conv.groups
    expected = torch.nn.grad.conv2d_input(size, weight.to(WIDE), dy, *geometry) + added.to(WIDE)
    if masked == "saved":
        expected = expected * (saved.z != 0)
    if masked == "again":
        expected = expected * (engine.form(LazyActivation(ys[:1], norms[:1], None, RELU), False).z != 0)
    yield "ds", relative(found, expected), tolerance
    assert len(coefficients) == (0 if mask is None else len(mask.ys))
    coefficients = [engine.settle(c) for c in coefficients]
    if mask is None:
        return
    m = found.numel() // case.c
    each = zip(mask.ys, mask.norms, mask.affine, coefficients, strict=True)
    for raw, own, affine_out, (a1, a2, a0) in each:
        dbias = rows(found).sum(0)
        dweight = (rows(found) * (rows(raw) - own.mean)).sum(0) * own.rstd
        # the sums of a stored half gradient are those of what was rounded, or of what was not: both are right
        near = max(exact, tolerance if dtype != torch.float32 else 0.0)
        yield "dβ", relative(affine_out[1], dbias), near
        yield "dγ", relative(affine_out[0], dweight), near
        assert torch.equal(a1, own.scale)
        assert (a2 is None) == (not batch)
        if batch:
            e2 = -own.scale.to(WIDE) * own.rstd * affine_out[0].to(WIDE) / m
            yield "c2", relative(a2, e2), exact
            yield "c0", relative(a0, -own.scale.to(WIDE) * affine_out[1].to(WIDE) / m - e2 * own.mean), exact


def two_paths(
    engine: Engine, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return the gradient of a projection block's input: conv1ᵀ + projᵀ, of different kernels at stride 2,
    and three added terms: found and expected."""
    size = (3, 24, 9, 11)
    three = Case("", 3, 9, 11, 24, 40, stride=2)
    one = dataclasses.replace(three, kernel=1, padding=0)
    paths, expected = [], torch.zeros(size, dtype=WIDE, device=device)
    for seed, conv in ((20, three.conv()), (30, one.conv())):
        weight = draw(40, 24, *conv.kernel, seed=seed).to(device, dtype)
        ds, y = (activation(*conv.shape(size), seed=seed + k, dtype=dtype, device=device) for k in (1, 2))
        c1 = draw(40, seed=seed + 3, device=device)
        paths.append(BackpropPath(conv, engine.pack(conv, weight, dtype), ds, y, (c1, None, None)))
        dy = (ds.to(WIDE) * channels(c1)).to(dtype).to(WIDE)
        expected += torch.nn.grad.conv2d_input(size, weight.to(WIDE), dy, conv.stride, conv.padding)
    added = [activation(*size, seed=40 + k, dtype=dtype, device=device) for k in range(3)]
    found, coefficients = engine.gradient(paths, added, None, size)
    assert coefficients == []
    return found, expected + sum(t.to(WIDE) for t in added)


def nan_errors(engine: Engine, device: str = "cpu", c: int = 16) -> Iterator[Error]:
    """A NaN pixel makes its neighbourhood NaN, through the ReLU, and its gradient's mask stays open."""
    conv, size = Case("", 2, 8, 8, c, c).conv(), (2, c, 8, 8)
    y, residual = (activation(*size, seed=seed, device=device) for seed in (1, 3))
    y[1, 3, 4, 4] = float("nan")
    read = LazyActivation((y,), (norm(c, 2, device=device),), residual, RELU)
    wanted, weight = target(c, device=device), draw(c, c, 3, 3, seed=5, device=device)
    out, formed = engine.convolve(conv, engine.pack(conv, weight, torch.float32), read, True, True, wanted)
    engine.ready(wanted.norm)
    yield "neighbours that are not NaN", (~out[1, :, 3:6, 3:6].isnan()).sum().item(), 1
    yield "others that are", out[0].isnan().sum().item(), 1
    yield "statistics that are not", (~wanted.norm.vectors.isnan()).sum().item(), 1
    assert formed is not None
    for mask in (formed.mask, None):
        masked = Mask(RELU, mask, (y,), read.norms, (affine(c, device),))
        ds, _ = engine.gradient([], [torch.ones_like(y)], masked, size)
        yield "a mask that closed", float(ds[1, 3, 4, 4] != 1), 1


def large_mean_errors(engine: Engine, device: str = "cpu", exact: float = 2e-7) -> Iterator[Error]:
    """Yield the errors of float32 statistics with mean = 1000·std, where E[y²] − E[y]² would have no digit.
    The convolution is the identity. exact: the tolerance of the mean."""
    conv, wanted = Case("", 3, 9, 9, 16, 16).conv(), target(16, device=device)
    weight = torch.zeros(16, 16, 3, 3, device=device)
    weight[:, :, 1, 1] = torch.eye(16)
    x = activation(3, 16, 9, 9, seed=1, mean=1000.0, device=device)
    y, _ = engine.convolve(conv, engine.pack(conv, weight, torch.float32), x, False, False, wanted)
    engine.ready(wanted.norm)
    yield "mean", relative(wanted.norm.mean, rows(y).mean(0)), exact
    yield "rstd", relative(wanted.norm.rstd, (rows(y).var(0, correction=0) + 1e-5).rsqrt()), 1e-5
