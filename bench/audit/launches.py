"""The Triton engine's launches of a training step, without a GPU: the engine walks a network on fake
tensors, and each launch is noted."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.jit import JITFunction

from fastbn.engine.program.build import read
from fastbn.engine.triton.engine import Triton
from fastbn.engine.triton.tuning_table import shipped
from fastbn.models.resnet import FastBNOnlyResNet

# depth, image size; CIFAR-866 launches what CIFAR-20 does
NETWORKS = {"cifar": ((20, 32),), "imagenet": ((50, 224), (18, 224))}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
PRECISIONS = {"tf32": "tf32", "fp32": "tf32x3"}  # of float32's products
POINTERS = {torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64"} | {
    dtype: f"*{name}" for name, dtype in DTYPES.items()
}
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion", "launch_pdl")
BATCH = 128  # a multiple of 16, like the usual ones: an argument's divisibility is part of what is compiled


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch, as the compiler sees it."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]  # of the arguments that are no constants
    constexprs: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, int], ...]

    def __getitem__(self, name: str) -> Any:
        return dict(self.constexprs).get(name)

    def reads(self, name: str) -> bool:
        """Tell whether this argument is a tensor."""
        return dict(self.signature).get(name, "").startswith("*")


def launch(kernel: Any, given: dict[str, Any]) -> Launch:
    """Return the launch as Triton's own launcher tells what is compiled for these arguments."""
    constants = {p.name for p in kernel.params if p.is_constexpr}
    loose = {p.name for p in kernel.params if p.do_not_specialize or p.do_not_specialize_on_alignment}
    signature, constexprs = [], []
    for name in kernel.arg_names:
        value = given[name]
        if name in constants or value is None or (type(value) is int and value == 1 and name not in loose):
            constexprs.append((name, value))
        else:
            signature.append((name, kind(value).removesuffix(":16" if name in loose else "")))
    return Launch(
        kernel,
        tuple(signature),
        tuple(constexprs),
        tuple((name, given[name]) for name in OPTIONS if name in given),
    )


def kind(value: Tensor | float) -> str:
    """Return an argument's type, with :16 where its alignment is known."""
    if isinstance(value, Tensor):
        aligned = value.storage_offset() * value.element_size() % 16 == 0
        assert aligned, "compile_and_count takes pointers to be aligned"
        return POINTERS[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return ("i32" if -(2**31) <= value < 2**31 else "i64") + (":16" if value % 16 == 0 else "")
    return "fp32"


def launches(family: str, dtype: str, capability: int, dependent: bool = False) -> dict[Launch, int]:
    """Return a step's distinct launches, in order, and how many of each there are. dependent: whether they
    begin early."""
    tuning = dataclasses.replace(shipped(), early=frozenset({capability} if dependent else ()))
    engine = Triton(capability, tuning=tuning, precision=PRECISIONS.get(dtype, "ieee"))
    found: collections.Counter[Launch] = collections.Counter()
    for network in NETWORKS[family]:
        with noted(lambda kernel, given: found.update([launch(kernel, given)])):
            walk(family, *network, [BATCH], DTYPES[dtype], engine)
    return dict(found)


def walk(
    family: str, depth: int, size: int, batches: Iterable[int], dtype: torch.dtype, engine: Triton
) -> None:
    """Take a network forward on fake images of these batches, and backward where gradients are enabled."""
    model = FastBNOnlyResNet(depth, family=family, engine="stock").train(torch.is_grad_enabled())
    model.fc = nn.Identity()  # which stays PyTorch's, and asks for its own dtype
    with FakeTensorMode(allow_non_fake_inputs=True):
        _, program = read(model, {}, engine, {})
        for batch in batches:
            y = program(torch.empty((batch, 3, size, size), dtype=dtype))
            if torch.is_grad_enabled():
                y.backward(torch.empty_like(y))


@contextlib.contextmanager
def noted(take: Callable[[Any, dict[str, Any]], None]) -> Iterator[None]:
    """Inside, `take` is given each launch's kernel and arguments, and nothing is launched."""

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **given: Any) -> None:
        take(kernel, dict(zip(kernel.arg_names, args, strict=False)) | given)

    with mock.patch.object(JITFunction, "run", run):
        yield
