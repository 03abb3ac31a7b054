"""The digests by which a patch knows its base, tensor by tensor.

A line for each frozen tensor: its dtype, its shape, and the beginning of the SHA-256 of its bytes; then the
same of its roundings to each narrower dtype, so that a base that was cast is known too. One SHA-256 over the
whole digests holds them together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fastbn.patches.contents import FLOATS, dtype_name, shape_name

SHORT = 12  # hex digits of a digest that a line keeps


def kinds(dtype: torch.dtype) -> list[torch.dtype]:
    """Return the dtypes whose digests a line keeps of a tensor of this one: its own, and those that it rounds
    to."""
    return [*FLOATS[FLOATS.index(dtype) :]] if dtype in FLOATS else [dtype]


def digest(name: str, t: Tensor) -> str:
    """Return the SHA-256 (hex) over a tensor's name, dtype, shape, and its bytes in row-major order."""
    content = t.detach().to("cpu").contiguous()
    sha = hashlib.sha256(f"{name} {dtype_name(content.dtype)} {shape_name(content.shape)}\n".encode())
    sha.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def without_entries(t: Tensor, mask: Tensor | None) -> Tensor:
    """Return a frozen tensor on the CPU, with zeros where entries of it train."""
    copied = t.detach().cpu()
    return copied if mask is None else copied.masked_fill(mask.cpu(), 0)


def lines(frozen: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[dict[str, str], str]:
    """Return every frozen tensor's line, and the SHA-256 over all of their digests."""
    said, whole = {}, []
    for name, given in frozen.items():
        t = without_entries(given, masks.get(name))
        exact, *rounded = (digest(name, t.to(dtype)) for dtype in kinds(t.dtype))
        whole.append(exact)
        short = " ".join(one[:SHORT] for one in (exact, *rounded))
        said[name] = f"{dtype_name(t.dtype)} {shape_name(t.shape)} {short}"
    return said, _over(whole)


def differences(
    said: Mapping[str, str], sha256: str, frozen: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> list[str]:
    """Return how a network's frozen tensors differ from a patch's base: a sentence for each tensor that does.
    Those that the network lacks are not looked for."""
    sentences, whole, exact = [], [], True
    for name in frozen:
        if name not in said:
            continue
        dtype, _, *digests = said[name].split()
        t = without_entries(frozen[name], masks.get(name))
        kept_as = next((one for one in FLOATS if dtype_name(one) == dtype), t.dtype)
        kept = [dtype_name(one) for one in kinds(kept_as)]
        if kept_as in FLOATS and dtype_name(t.dtype) not in kept and t.dtype in FLOATS:
            t = t.to(kept_as)  # a wider one: it is the base where it rounds to it
        here = dtype_name(t.dtype)
        exact = exact and here == dtype
        if here not in kept:
            sentences.append(f"{name} is {dtype} in the patch's base and {here} in the network")
            continue
        if (now := digest(name, t))[:SHORT] != digests[kept.index(here)]:
            sentences.append(f"{name} has other values than in the network that the patch was made from")
        whole.append(now)
    if not sentences and exact and len(whole) == len(said) and _over(whole) != sha256:
        sentences.append("the frozen weights have another SHA-256 than those that the patch was made from")
    return sentences


def _over(digests: Iterable[str]) -> str:
    """Return one SHA-256 over all of these, in whatever order."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
