"""Everything that torch_xla is asked: the device, what was compiled, the precision of products.

torch_xla records what is done to its tensors, and compiles it when it runs; a graph that it has seen it runs
again. Part of a graph is every shape and most Python numbers in it, so what differs from step to
step has to be data: indices, the learning rate."""

from __future__ import annotations

import functools
import logging
import os
from types import ModuleType

import torch
from torch import Tensor

from fastbn.errors import MachineError

INSTALL = "pip install torch==2.9.0 torch_xla==2.9.0 in an environment of its own, or use --device cpu"


@functools.cache
def torch_xla_package() -> ModuleType:
    """Return the package torch_xla. Raises MachineError where it isn't there, or is of another torch."""
    # else a graph's first run, whose inputs are new, is another than its second
    os.environ.setdefault("XLA_ENABLE_PARAM_ALIASING", "0")
    try:
        import torch_xla
    except ModuleNotFoundError as error:
        raise MachineError(
            f"--device xla needs torch_xla, and there is no module {error.name} here; {INSTALL}"
        ) from error
    except ImportError as error:  # its library looks for symbols that only the torch it was built for has
        reason = str(error).splitlines()[0][:160]
        raise MachineError(
            f"--device xla: torch_xla does not load with torch {torch.__version__} ({reason}); {INSTALL}"
        ) from error
    return torch_xla


def device() -> torch.device:
    """Return this process's device: the first chip of the kind that PJRT_DEVICE names. Raises MachineError
    where there is none."""
    try:
        chip: torch.device = torch_xla_package().device()
        return chip
    except RuntimeError as error:
        if isinstance(error, MachineError):
            raise
        asked = os.environ.get("PJRT_DEVICE", "")
        reason = (str(error).splitlines() or [""])[0][:160]
        remedy = "set PJRT_DEVICE=TPU on a TPU VM that no other process uses, PJRT_DEVICE=CPU anywhere"
        raise MachineError(
            f"--device xla finds no device, PJRT_DEVICE is {asked!r} ({reason}); {remedy}"
        ) from error


def describe() -> str:
    """Return the device as torch_xla names it: 'XLA: CPU'."""
    torch_xla_package()
    from torch_xla import runtime

    return f"XLA: {runtime.device_type()}"


def version() -> str:
    """Return torch_xla's version."""
    release: str = torch_xla_package().__version__
    return release


def carry_out(wait: bool = False) -> None:
    """Hands over what was noted down, as one graph; `wait`: until the device has done it."""
    torch_xla_package().sync(wait=wait)


def compilations() -> int:
    """Return how many graphs this process has compiled so far."""
    torch_xla_package()
    from torch_xla.debug import metrics

    counted = metrics.metric_data("CompileTime")
    return 0 if counted is None else int(counted[0])


def exact(asked: bool) -> None:
    """Set whether products of float32 are float32's: a TPU's are bfloat16's unless this asks for more."""
    torch_xla_package()
    from torch_xla import backends

    logging.getLogger(backends.__name__).setLevel(logging.ERROR)  # it warns whenever it is asked
    wanted = "highest" if asked else "default"
    if backends.get_mat_mul_precision() != wanted:
        backends.set_mat_mul_precision(wanted)


def number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a scalar there, as data: by torch.tensor 0 and 1 would be constants of the graph that reads
    them."""
    torch_xla_package()
    from torch_xla.core import xla_model

    sent: Tensor = xla_model.send_cpu_data_to_device(torch.tensor(value, dtype=dtype), device)[0]
    return sent
