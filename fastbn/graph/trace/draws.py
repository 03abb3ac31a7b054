"""Keep random numbers, Python's, numpy's and torch's, as they are while something is tried."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Inside, random numbers may be drawn and the grad mode set: afterwards they are what they were."""
    drawn, grad = random_state(), torch.is_grad_enabled()
    try:
        yield
    finally:
        restore(drawn)
        torch.set_grad_enabled(grad)


def random_state() -> Any:
    """Return the state of all random numbers, as `restore` takes it."""
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    return (
        python_state(),
        torch.random.get_rng_state(),
        device,
        device is not None and torch.cuda.get_rng_state(),
    )


def same_numbers(one: Any, other: Any) -> bool:
    """Return whether two states are the same on the CPU, Python's and numpy's included."""
    return one[0] == other[0] and torch.equal(one[1], other[1])


def restore(state: Any) -> None:
    """Put random numbers back to what `random_state` returned."""
    python, cpu, device, cuda = state
    restore_python(python)
    with torch._C.DisableTorchFunction():
        torch.random.set_rng_state(cpu)
        if device is not None:
            torch.cuda.set_rng_state(cuda, device)


def python_state() -> Any:
    """Return the state of Python's and numpy's random numbers, which compares by ==."""
    state: Any = np.random.get_state()
    name, key, *rest = state
    return random.getstate(), (name, bytes(key), *rest)


def restore_python(state: Any) -> None:
    """Put Python's and numpy's random numbers back to what `python_state` returned."""
    python, (name, key, *rest) = state
    random.setstate(python)
    np.random.set_state((name, np.frombuffer(key, np.uint32), *rest))
