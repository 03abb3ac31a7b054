"""The Triton engine's launches of a training step, without a GPU: the engine walks a network on fake
tensors, and each launch is noted by Triton's own hook ahead of a compilation."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import triton
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget

from fastbn.engine.program.build import read
from fastbn.engine.triton.engine import Triton
from fastbn.engine.triton.tuning_table import shipped
from fastbn.models.resnet import FastBNOnlyResNet

# depth, image size; CIFAR-866 launches what CIFAR-20 does
NETWORKS = {"cifar": ((20, 32),), "imagenet": ((50, 224), (18, 224))}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
PRECISIONS = {"tf32": "tf32", "fp32": "tf32x3"}  # of float32's products
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion", "launch_pdl")
BATCH = 128  # a multiple of 16, like the usual ones: an argument's divisibility is part of what is compiled


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch, as the compiler sees it."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]  # of the arguments that are no constants; :16 of known multiples
    constexprs: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, int], ...]

    def __getitem__(self, name: str) -> Any:
        return dict(self.constexprs).get(name)

    def reads(self, name: str) -> bool:
        """Tell whether this argument is a tensor."""
        return dict(self.signature).get(name, "").startswith("*")


def launch(kernel: Any, told: dict[str, Any]) -> Launch:
    """Return the launch of which Triton tells this to a hook ahead of a compilation."""
    (attributes,) = told["configs"]
    constexprs = {kernel.arg_names[i]: value for (i,), value in told["constants"].items()}
    aligned = {kernel.arg_names[i] for (i,), known in attributes.items() if known}
    signature = [
        (name, kind if kind.startswith("*") or name not in aligned else f"{kind}:16")
        for name, kind in told["signature"].items()
        if name not in constexprs
    ]
    any_address = {p.name for p in kernel.params if p.do_not_specialize_on_alignment}
    pointers = {name for name, kind in signature if kind.startswith("*")}
    assert pointers <= aligned | any_address, "compile_and_count takes pointers to be aligned"
    options = json.loads(told["specialization_data"])["options"]
    own = tuple((name, options[name]) for name in OPTIONS)
    return Launch(kernel, tuple(signature), tuple(constexprs.items()), own)


def launches(family: str, dtype: str, capability: int, dependent: bool = False) -> dict[Launch, int]:
    """Return a step's distinct launches, in order, and how many of each there are. dependent: whether they
    begin early."""
    tuning = dataclasses.replace(shipped(), early=frozenset({capability} if dependent else ()))
    engine = Triton(capability, tuning=tuning, precision=PRECISIONS.get(dtype, "ieee"))
    found: collections.Counter[Launch] = collections.Counter()
    for network in NETWORKS[family]:
        with noted(lambda kernel, told: found.update([launch(kernel, told)]), capability):
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


class Driver:
    """The answers that Triton asks of a driver before it compiles."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # a kernel keeps what it compiled by device, for the target of the first call

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@contextlib.contextmanager
def noted(take: Callable[[Any, dict[str, Any]], None], capability: int) -> Iterator[None]:
    """Inside, `take` is given each launch's kernel and what Triton would compile for it on a GPU of this
    capability; nothing is compiled or launched, for Triton's hook ahead of a compilation can say no."""

    def hook(*, fn: Any, compile: dict[str, Any], **more: Any) -> bool:
        take(fn.jit_function, compile)
        return True

    triton.runtime.driver.set_active(Driver(capability))
    try:
        with triton.knobs.runtime.scope(), warnings.catch_warnings():
            # Triton asks for a fake tensor's address, which is its offset, and reads the alignment off it
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            triton.knobs.runtime.jit_cache_hook = hook
            yield
    finally:
        with contextlib.suppress(RuntimeError):  # where no GPU is, there is no other driver
            triton.runtime.driver.reset_active()
