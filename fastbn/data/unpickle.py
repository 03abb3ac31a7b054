"""A reader of the pickles of CIFAR's python batches, and nothing else: a dictionary of lists, bytes and byte
arrays.

A pickle can name any function to be called. Here the four names that these files need resolve to stand-ins
of our own that only record what they are given; every other name is refused before anything of it runs, and
numpy never sees the pickle. The unpickler is the one written in Python: the other makes a table as long as
the largest number that a pickle gives to one of its objects.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from fastbn.errors import UsageError
from fastbn.files import reason, shown

MOST_LABEL = 1 << 31  # what a set's classes are numbered below, whatever they are


def read_batch(blob: bytes, where: str, labels_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 3072) uint8 rows and (N,) int64 labels of one batch; UsageError, naming `where`, for
    anything unexpected."""
    try:
        content = _Unpickler(io.BytesIO(blob), encoding="bytes").load()
    except UsageError as error:
        raise UsageError(f"{where} {error}; {_REMEDY}") from None
    except Exception as error:  # a malformed pickle raises almost anything
        raise UsageError(
            f"{where} is not a CIFAR batch ({type(error).__name__}: {reason(error)}); {_REMEDY}"
        ) from None
    if not isinstance(content, dict):
        raise UsageError(
            f"{where} holds a {type(content).__name__}, not the dictionary of a CIFAR batch; {_REMEDY}"
        )
    by_name = {
        key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()
    }
    missing = {"data", labels_key} - by_name.keys()
    if missing:
        raise UsageError(f"{where} lacks {', '.join(sorted(missing))}; {_REMEDY}")
    data, labels = by_name["data"], by_name[labels_key]
    if not isinstance(data, _Array) or data.dtype != "u1" or len(data.shape) != 2 or data.shape[1] != 3072:
        data_held = data if isinstance(data, _Array) else f"a {type(data).__name__}"
        raise UsageError(f"{where} holds as data {shown(data_held)}, not bytes of shape (N, 3072); {_REMEDY}")
    if (
        not isinstance(labels, list)
        or len(labels) != data.shape[0]
        or not all(_is_label(label) for label in labels)
    ):
        raise UsageError(
            f"{where} holds as {labels_key} something else than {data.shape[0]} integers from 0; {_REMEDY}"
        )
    return data.bytes(), np.array(labels, np.int64)


_REMEDY = "delete it and unpack the official archive again"


def _is_label(value: object) -> bool:
    return type(value) is int and 0 <= value < MOST_LABEL


class _Dtype:
    """A stand-in for numpy.dtype: its name is all that is kept."""

    def __init__(self, name: Any = "", *_: Any):
        self.name = name.decode("latin1") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and fields: a byte has none


class _Array:
    """A stand-in for numpy.ndarray, which keeps the pickled state, checked, as the array it would become."""

    shape: tuple[int, ...] = ()
    dtype = ""
    content = b""
    fortran = False

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or dtype.name != "u1" or not isinstance(content, bytes):
            kind = dtype.name if isinstance(dtype, _Dtype) else type(dtype).__name__
            raise UsageError(f"holds an array of {shown(kind)!r}, where CIFAR's are of bytes ('u1')")
        shape = tuple(int(extent) for extent in shape)
        if min(shape, default=0) < 0 or int(np.prod(shape, dtype=object)) != len(content):
            raise UsageError(f"holds an array of shape {shown(shape)} in {len(content)} bytes")
        self.shape, self.dtype, self.content, self.fortran = shape, "u1", content, bool(fortran)

    def __repr__(self) -> str:
        return f"an array of {self.dtype or 'nothing'}, shape {self.shape}"

    def bytes(self) -> np.ndarray:
        return np.frombuffer(self.content, np.uint8).reshape(self.shape, order="F" if self.fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise UsageError(f"asks for the encoding {shown(encoding)!r}")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise UsageError(
                f"is a pickle that names {shown(module)}.{shown(name)}, which no CIFAR file does; nothing "
                "of it was run"
            )
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise UsageError("is a pickle with a persistent identifier, which no CIFAR file has")
