"""A trace takes in two things besides operations: calls of a torch.autograd.Function, and proxies that
somebody keeps."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

_TRACING = threading.local()


@contextlib.contextmanager
def recorded(tracer: Any) -> Iterator[None]:
    """Inside, this thread's calls of a Function's apply become nodes: run on proxies, its forward would be
    traced and its backward dropped. Other threads' calls pass through."""
    original = vars(torch.autograd.Function)["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        current = getattr(_TRACING, "tracer", None)
        if current is None:
            return original.__get__(None, cls)(*args, **kwargs)
        if any(
            isinstance(leaf, nn.Module) or (callable(leaf) and not isinstance(leaf, fx.Proxy))
            for leaf in tree_leaves((args, kwargs))
        ):
            current.refuse(f"hands {cls.__name__}.apply a function")
        return current.create_proxy("call_function", applied(cls), args, kwargs)

    _TRACING.tracer = tracer
    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]
        _TRACING.tracer = None


def applied(kind: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return a function that calls a Function's apply, under its name."""

    def apply(*args: Any, **kwargs: Any) -> Any:
        return kind.apply(*args, **kwargs)

    apply.__name__ = apply.__qualname__ = kind.__name__
    return apply


def leavings(born: list[tuple[weakref.ref[fx.Proxy], str]]) -> str:
    """Return where a proxy was made that outlives its trace, or "" where there is none. Lists, sets and
    dictionaries lose theirs again."""
    if all(reference() is None for reference, _ in born):
        return ""
    gc.collect()
    lines = [line for reference, line in born if reference() is not None]
    for reference, _ in born:
        if (kept := reference()) is not None:
            for holder in gc.get_referrers(kept):
                if isinstance(holder, list):
                    holder[:] = [item for item in holder if item is not kept]
                elif isinstance(holder, set):
                    holder.discard(kept)
                elif isinstance(holder, dict):
                    for name in [name for name, item in holder.items() if item is kept]:
                        del holder[name]
    return lines[0] if lines else ""
