"""Every way of adapting shares this: the model's BatchNorms, what they held before, the modes of a call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastbn.errors import UsageError

STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class Adaptation:
    """A model with BatchNorm, and what its norms held when adaptation began.

    Raises UsageError for a model without BatchNorm."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
        if not self._norms:
            raise UsageError(
                f"{type(self).__name__} adapts BatchNorm layers, and {type(model).__name__} has none; give a "
                "model with BatchNorm"
            )
        self._before = state_of(self._norms.values())

    @torch.no_grad()
    def reset(self) -> None:
        """Give γ, β and the running statistics back the bits that they had when adaptation began."""
        put(self._norms.values(), self._before)

    @contextlib.contextmanager
    def _by_the_batch(self) -> Iterator[None]:
        """Inside, the model is in evaluation mode and its BatchNorms take each batch's statistics; the
        running ones stay."""
        # a subclass may spell its forward out, and move them whatever track_running_stats says
        written_out = [m for m in self._norms.values() if not type(m).__module__.startswith("torch.nn.")]
        kept, tracks = state_of(written_out), [m.track_running_stats for m in self._norms.values()]
        with evaluating(self.model):
            for norm in self._norms.values():
                norm.training, norm.track_running_stats = True, False
            try:
                yield
            finally:
                for norm, tracked in zip(self._norms.values(), tracks, strict=True):
                    norm.track_running_stats = tracked
                put(written_out, kept, STATE[2:])


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards every module's mode is what it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def state_of(norms: Iterable[nn.Module]) -> list[dict[str, Tensor]]:
    """Return copies of what each norm holds."""
    held = [{name: getattr(norm, name) for name in STATE} for norm in norms]
    return [{name: t.detach().clone() for name, t in tensors.items() if t is not None} for tensors in held]


def put(norms: Iterable[nn.Module], states: list[dict[str, Tensor]], names: Iterable[str] = STATE) -> None:
    """Copy states back, wherever the norms' tensors now lie."""
    with torch.no_grad():
        for norm, state in zip(norms, states, strict=True):
            for name in names:
                if name in state:
                    getattr(norm, name).copy_(state[name])


def check_tracked(norms: dict[str, _BatchNorm], what: str) -> None:
    """Raise UsageError where a norm keeps no running statistics."""
    for name, norm in norms.items():
        if norm.running_mean is None or norm.running_var is None:
            raise UsageError(
                f"{what} needs running statistics, and {name or 'the BatchNorm'} keeps none "
                "(track_running_stats=False); use AdaBN or Tent"
            )
