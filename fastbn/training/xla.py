"""XLA, and everything fastbn knows of torch_xla: the device, a step as one compiled graph, what was compiled,
a process a chip.

    python -m fastbn.training.xla --depth 14 --device xla       # python -m fastbn.train on every chip of this machine

torch_xla notes down what is done to its tensors, and compiles it when it is carried out; a graph it has seen
it runs again. Part of a graph is every shape and most Python numbers in it, so what differs from step to step
has to be data: indices, the learning rate."""

from __future__ import annotations

import functools
import logging
import os
import pickle
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastbn import command
from fastbn.data.feed import Inputs
from fastbn.environment import Place, place, placed
from fastbn.errors import MachineError, UsageError
from fastbn.training.distributed.ranks import ALONE, PREPARATION, Ranks

T = TypeVar("T")
INSTALL = "pip install torch==2.9.0 torch_xla==2.9.0 in an environment of its own, or use --device cpu"


@functools.cache
def _torch_xla() -> ModuleType:
    """The package. Raises MachineError where it isn't there, or is of another torch."""
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
    """This process's: the first chip of the kind that PJRT_DEVICE names. Raises MachineError where there
    is none."""
    try:
        found: torch.device = _torch_xla().device()
        return found
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
    """The device as torch_xla names it: 'XLA: CPU'."""
    _torch_xla()
    from torch_xla import runtime

    return f"XLA: {runtime.device_type()}"


def version() -> str:
    found: str = _torch_xla().__version__
    return found


def carry_out(wait: bool = False) -> None:
    """Hands over what was noted down, as one graph; `wait`: until the device has done it."""
    _torch_xla().sync(wait=wait)


def compilations() -> int:
    """How many graphs this process has compiled so far."""
    _torch_xla()
    from torch_xla.debug import metrics

    found = metrics.metric_data("CompileTime")
    return 0 if found is None else int(found[0])


def exact(asked: bool) -> None:
    """Whether products of float32 are float32's: a TPU's are bfloat16's unless told otherwise."""
    _torch_xla()
    from torch_xla import backends

    logging.getLogger(backends.__name__).setLevel(logging.ERROR)  # it warns whenever it is asked
    wanted = "highest" if asked else "default"
    if backends.get_mat_mul_precision() != wanted:
        backends.set_mat_mul_precision(wanted)


def number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A scalar there, as data: by torch.tensor 0 and 1 would be constants of the graph that reads them."""
    _torch_xla()
    from torch_xla.core import xla_model

    sent: Tensor = xla_model.send_cpu_data_to_device(torch.tensor(value, dtype=dtype), device)[0]
    return sent


class OneGraph:
    """Takes steps by `compute`, each as one graph, the same one for every batch of a size. state: what a
    step may move of the model."""

    def __init__(self, compute: Callable[[Inputs, Tensor, Any], None], state: list[Tensor]):
        self._compute, self._state = compute, state

    def __call__(self, inputs: Inputs, lr: Tensor, totals: Any) -> None:
        carry_out()  # what comes before a step is no part of its graph
        self._compute(inputs, lr, totals)
        # views of the flat vectors are else taken anew by whatever reads them next, in its graph
        for tensor in self._state:
            torch._sync(tensor)  # type: ignore[attr-defined]
        carry_out()


class Chips(Ranks):
    """The processes that torch_xla's launcher started, one a chip. What they tell each other goes over XLA's
    collectives, the step's one all-reduce in its graph; nobody's patience ends there, so a lost chip is the
    TPU runtime's to report."""

    def _everybody(self, value: T) -> list[T]:
        from torch_xla.core import xla_model

        with self.waiting("the run's preparation", PREPARATION):
            return [pickle.loads(said) for said in xla_model.rendezvous("fastbn", pickle.dumps(value))]

    def told(self, value: T) -> T:
        return self._everybody(value if self.first else None)[0]  # type: ignore[return-value]

    @property
    def backend(self) -> str:
        return "torch_xla"

    def sum(self, tensor: Tensor) -> Tensor:
        from torch_xla.core import xla_model

        found: Tensor = tensor.copy_(xla_model.all_reduce(xla_model.REDUCE_SUM, tensor))
        return found

    def _first_ones(self, flat: Tensor) -> Tensor:
        from torch_xla.core import xla_model

        found: Tensor = xla_model.all_gather(flat.view(1, -1))[0]
        return found


def ranks(timeout: float) -> Ranks:
    """The chips that train together, or ALONE."""
    here = place()
    device()
    from torch_xla import runtime

    if runtime.world_size() == 1 and here.count == 1:
        return ALONE
    if runtime.world_size() != here.count:
        raise UsageError(
            f"--device xla was started as rank {here.rank} of {here.count} by something else than "
            "torch_xla's launcher; start it by "
            "python -m fastbn.training.xla, with the arguments of python -m fastbn.train"
        )
    return Chips(here.rank, here.count, timeout)


def _chip(ordinal: int, arguments: list[str]) -> None:
    """One of the launched processes."""
    from torch_xla import runtime

    from fastbn.train import main

    with placed(Place(ordinal, runtime.world_size(), runtime.local_ordinal(), 0)):
        code = main(arguments)
    if code:
        sys.exit(code)


def launch(arguments: list[str]) -> int:
    """python -m fastbn.train with these arguments, in a process a chip."""

    def start() -> int:
        _torch_xla().launch(_chip, (arguments,))
        return 0

    return command.run(start)


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
