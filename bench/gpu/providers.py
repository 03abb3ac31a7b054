"""Who takes part in bench.gpu step: stock PyTorch and fastbn, in every way and precision that a user has."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bench.gpu.measure import DEVICE
from bench.gpu.networks import offers_mixed
from fastbn import FastBNOnlyResNet, freeze, fuse
from fastbn.choices import PRECISIONS
from fastbn.data.feed import Resident
from fastbn.data.images import Images
from fastbn.planning import precision
from fastbn.recipe import Recipe
from fastbn.training.replicas import lanes
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals

Ready = Callable[[], None]
AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}
COMPILED_DEPTH = 56
LAST = {"tf32": 1, "fp32": 2}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What network takes a step on what."""

    depth: int
    batch: int
    family: str = "cifar"
    size: int = 32
    width: int | None = None
    replicas: tuple[int, ...] = ()  # so many networks at a time, instead of one by every provider

    @property
    def name(self) -> str:
        return f"{self.depth}x{self.batch}" + ("-replicas" if self.replicas else "")

    def model(self, engine: str, train: str = "bn", seed: int = 0) -> nn.Module:
        model = freeze(
            FastBNOnlyResNet(self.depth, family=self.family, width=self.width, seed=seed, engine="stock"),
            train,
        )
        model = model.to(DEVICE)
        return model.to(memory_format=torch.channels_last) if engine == "stock" else fuse(model, engine)  # type: ignore[call-overload]


CIFAR = Setting(866, 128), Setting(14, 128), Setting(110, 128), Setting(866, 1024)
REPLICAS = [Setting(depth, 128, replicas=(1, 2, 4, 8)) for depth in (866, 110)]
SETTINGS = {s.name: s for s in (*CIFAR, Setting(50, 256, "imagenet", 224), *REPLICAS)}
SMALL = Setting(8, 4, size=6, width=16)
SMALL_REPLICAS = dataclasses.replace(SMALL, replicas=(1, 2))


def numbers(kind: str, capturing: bool = False) -> contextlib.AbstractContextManager[Any]:
    """A precision, as a user sets it."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    if kind not in AUTOCAST:
        return contextlib.nullcontext()
    return torch.autocast(DEVICE.type, AUTOCAST[kind], cache_enabled=not capturing)


def loop(setting: Setting, engine: str, train: str, kind: str, way: str) -> Ready:
    """A step of a user's loop: eager, compiled, or as one CUDA graph."""
    model = setting.model(engine, train)
    forward = torch.compile(model, dynamic=False) if way == "compiled" else model
    x = torch.randn(setting.batch, 3, setting.size, setting.size, device=DEVICE).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.randint(0, 10, (setting.batch,), device=DEVICE)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=1e-4
    )

    def step() -> None:
        # the best that stock can do; fastbn's bits do not hang on a race
        torch.backends.cudnn.benchmark = engine == "stock"
        optimizer.zero_grad(set_to_none=True)
        with numbers(kind, way == "graph"):
            loss = F.cross_entropy(forward(x).float(), labels)
        loss.backward()
        optimizer.step()

    if way != "graph":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def fit(setting: Setting, engine: str, kind: str) -> Ready:
    """fastbn.fit's own step. fp16, which no recipe offers, by the same autocast that bf16 has there."""
    recipe = Recipe(batch_size=setting.batch, precision=kind if kind in PRECISIONS else "auto")
    data = Resident(_images(setting).to(DEVICE))
    step, totals = TrainingStep(setting.model(engine), data, recipe.resolved(160)), Totals.zero(DEVICE)
    data.begin(0, 0)
    batches = itertools.cycle(data.batches(setting.batch))

    def run() -> None:
        with numbers(kind, True) if kind != "mixed" else precision.arithmetic(kind, DEVICE):
            step(next(batches), 0.1, totals)

    return run


def beside(setting: Setting, kind: str, count: int) -> Ready:
    """fit_replicas' own: one of each of so many networks, of seeds of their own."""
    recipe = Recipe(batch_size=setting.batch, precision=kind).resolved(160)
    images, steps = _images(setting).to(DEVICE), []
    for seed in range(count):
        data = Resident(images)
        data.begin(seed, 0)
        step = TrainingStep(setting.model("triton", seed=seed), data, recipe)
        steps.append((step, itertools.cycle(data.batches(setting.batch)), Totals.zero(DEVICE)))
    stack = contextlib.ExitStack()
    places = stack.enter_context(lanes(DEVICE, count))

    def run() -> None:
        with precision.arithmetic(kind, DEVICE):
            for place, (step, batches, totals) in zip(places, steps, strict=True):
                with place:
                    step(next(batches), 0.1, totals)

    return run


def _images(setting: Setting) -> Images:
    """Two batches."""
    draw, count = torch.Generator().manual_seed(0), 2 * setting.batch
    pixels = torch.randint(0, 256, (count, setting.size, setting.size, 3), dtype=torch.uint8, generator=draw)
    return Images(pixels, torch.arange(count) % 10)


def providers(setting: Setting) -> dict[str, tuple[dict[str, Any], Callable[[], Ready]]]:
    """By name: what describes it in the record, and what makes its step. What a little time should go to
    comes first: what the bars ask for, then what takes minutes to compile, then the precisions that nobody
    trains in for speed."""
    cuda, found = DEVICE.type == "cuda", {}
    if setting.replicas:
        return _replicas(setting, "mixed" if offers_mixed() else "fp32")
    kinds = ("fp16", "bf16", "tf32", "fp32") if cuda else ("fp32",)
    for kind in (("mixed",) if offers_mixed() else ()) + kinds:
        found[f"fastbn fit, {kind}"] = {"who": "fastbn", "way": "fit", "train": "bn", "precision": kind}
    for kind in kinds:
        found[f"fastbn drop-in, {kind}"] = {"who": "fastbn", "way": "eager", "train": "bn", "precision": kind}
    ways = (
        [("graph", kinds[:2]), ("compiled", kinds[:2] if setting.depth <= COMPILED_DEPTH else ())]
        if cuda
        else []
    )
    for (way, precisions), train in itertools.product(
        [*ways[:1], ("eager", kinds), *ways[1:]], ("all", "bn")
    ):
        for kind in precisions:
            found[f"stock {train}, {way}, {kind}"] = {
                "who": "stock",
                "way": way,
                "train": train,
                "precision": kind,
            }

    def make(how: dict[str, str]) -> Ready:
        engine = "triton" if how["who"] == "fastbn" else "stock"
        if how["way"] == "fit":
            return fit(setting, engine, how["precision"])
        return loop(setting, engine, how["train"], how["precision"], how["way"])

    first = sorted(
        found.items(), key=lambda one: (LAST.get(one[1]["precision"], 0), one[1]["way"] == "compiled")
    )
    return {name: (how, lambda how=how: make(how)) for name, how in first}


def _replicas(setting: Setting, kind: str) -> dict[str, tuple[dict[str, Any], Callable[[], Ready]]]:
    found = {}
    for count in setting.replicas:
        how = {"who": "fastbn", "way": "replicas", "train": "bn", "precision": kind, "replicas": count}
        found[f"fastbn replicas, {count} at a time, {kind}"] = (
            how,
            lambda count=count: beside(setting, kind, count),
        )
    return found
