"""The CPU kernels' C interface, as ctypes sees it: the structures and enumerations of kernels/cpu/structs.h,
and what each function of kernels/cpu/calls.h takes; `tests/native/test_native_abi.py` compares the two."""

from __future__ import annotations

import ctypes
import enum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

POINTER, LONG, INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int


# by their values in the enumeration Function
FUNCTIONS = (
    "identity",
    "relu",
    "relu6",
    "hardsigmoid",
    "leaky_relu",
    "silu",
    "hardswish",
    "mish",
    "gelu",
    "gelu_tanh",
)


def _fields(pointers: str = "", ints: str = "", floats: str = "") -> list[tuple[str, Any]]:
    kinds = (INT, ints), (ctypes.c_float, floats), (POINTER, pointers)
    return [(name, kind) for kind, names in kinds for name in names.split()]


class GeometryStruct(ctypes.Structure):
    _fields_ = _fields(ints="n h w c oh ow oc kh kw sh sw ph pw dh dw groups")


class SourceStruct(ctypes.Structure):
    _fields_ = _fields(
        "y scale shift y_r rscale rshift residual z mask tasks", "function half rows stride", "slope"
    )


class NormStruct(ctypes.Structure):
    _fields_ = [
        *_fields("mean var weight bias conv_bias running_mean running_var counted", "c"),
        *((name, ctypes.c_double) for name in ("eps", "share", "unbiased")),
        ("out", POINTER),
        ("stride", LONG),
    ]


class PathStruct(ctypes.Structure):
    _fields_ = [("g", GeometryStruct), *_fields("ds y c1 c2 c0 weights", "M")]


class ValueStruct(ctypes.Structure):
    _fields_ = [
        *_fields("mask y y_r mean mean_r scale shift added added_2 ds", "n h w c function half", "slope")
    ]


class Called(enum.IntEnum):
    """A function of the library, where a call of it is written down."""

    CONVOLVE = 0
    FORM = 1
    GRADIENT = 2
    NORMALISE = 3
    FINISH = 4

    @property
    def function(self) -> str:
        """Return the function's name in the library."""
        return f"fastbn_{self.name.lower()}"


ARGUMENTS: dict[str, list[Any]] = {
    "fastbn_convolve": [POINTER, POINTER, POINTER, INT, POINTER, POINTER, INT],
    "fastbn_form": [POINTER, LONG, INT, INT],
    "fastbn_gradient": [POINTER, POINTER, INT, POINTER, INT],
    "fastbn_normalise": [POINTER],
    "fastbn_finish": [POINTER, POINTER, LONG, LONG, INT, POINTER, LONG, POINTER],
}


class StepStruct(ctypes.Structure):
    """A call that is played: which of Called, its pointers and its integers in order, the thread count left
    out."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [("what", LONG), ("at", POINTER * 5), ("n", LONG * 4)]


class PatchStruct(ctypes.Structure):
    """A pointer that is written anew each time: `offset` bytes into the memory that the player is given as
    its `slot`-th."""

    _fields_ = [("at", POINTER), ("slot", LONG), ("offset", LONG)]


PLAY: list[Any] = [
    ctypes.POINTER(StepStruct),
    LONG,
    ctypes.POINTER(PatchStruct),
    LONG,
    ctypes.POINTER(POINTER),
    INT,
]


def declare(kernels: ctypes.CDLL) -> None:
    """Tell ctypes what the library's functions take."""
    for name, arguments in ARGUMENTS.items():
        getattr(kernels, name).argtypes = arguments
    kernels.fastbn_openmp.argtypes, kernels.fastbn_openmp.restype = [POINTER], None
    kernels.fastbn_instructions.restype = ctypes.c_char_p
    kernels.fastbn_play.argtypes = PLAY


def by_address(norm: nn.BatchNorm2d, conv_bias: Tensor | None, c: int) -> bool:
    """Return whether the kernels can read a BatchNorm's tensors by their addresses: (C,) float32 on the CPU,
    contiguous."""

    def plain(t: Tensor) -> bool:
        return t.dtype == torch.float32 and t.device.type == "cpu" and t.shape == (c,) and t.is_contiguous()

    count = norm.num_batches_tracked
    counts = count is None or (count.dtype == torch.int64 and count.device.type == "cpu")
    return counts and all(
        t is None or plain(t)
        for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var, conv_bias)
    )
