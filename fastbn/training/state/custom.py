"""The parts that a caller brings in place of fastbn's own: a loss, an augmentation, an optimizer of
torch.optim's kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbn.errors import UsageError
from fastbn.trainable import trainable
from fastbn.training.state.flat import Flat

Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[..., torch.optim.Optimizer]


@dataclasses.dataclass(frozen=True)
class Custom:
    """The parts of a step that are the caller's.

    loss: of logits (n, classes) and labels (n,) int64, the mean over the batch as a scalar. augment: of a
    training batch (n, C, H, W) on its device, normalised and augmented as the data set does; returns one like
    it. optimizer: over exactly the parameters that train."""

    loss: Loss = F.cross_entropy
    augment: Callable[[Tensor], Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None

    def names(self) -> list[str]:
        """Return what is the caller's, by name."""
        given = {
            "loss": self.loss is not F.cross_entropy,
            "augment": self.augment is not None,
            "optimizer": self.optimizer is not None,
        }
        return [name for name, is_given in given.items() if is_given]

    def check(self, device: torch.device) -> None:
        """Raise UsageError on XLA, where a step is one graph and nothing of it is the host's."""
        if self.names() and device.type == "xla":
            raise UsageError(
                f"{' and '.join(self.names())} of your own can't be part of XLA's one graph a step; train on "
                "a CPU or a GPU, or leave it out"
            )

    def said(self) -> str:
        """Return what a training says of it: what can't be combined with it."""
        what = " and ".join(self.names())
        update = ", its update not fastbn's in one vector" if self.optimizer is not None else ""
        return f"step      {what} of your own: taken the plain way, no CUDA graph{update}"

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss. Raises UsageError for one that is no scalar."""
        loss = self.loss(logits, labels)
        if not isinstance(loss, Tensor) or loss.ndim:
            losses = (
                f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            )
            raise UsageError(
                f"loss must return a scalar tensor, the batch's mean, got {losses}; take its mean()"
            )
        return loss

    def augmented(self, x: Tensor) -> Tensor:
        """Return a training batch as the caller augments it. Raises UsageError for one of another shape."""
        if self.augment is None:
            return x
        augmented = self.augment(x)
        if not isinstance(augmented, Tensor) or len(augmented) != len(x):
            got = tuple(augmented.shape) if isinstance(augmented, Tensor) else f"a {type(augmented).__name__}"
            raise UsageError(f"augment must return as many images as it is given, {len(x)}, got {got}")
        return augmented


OWN = Custom()  # nothing is the caller's


def optimizer_of(
    model: nn.Module, given: torch.optim.Optimizer | MakeOptimizer, lr: float | None
) -> torch.optim.Optimizer:
    """Return the optimizer that is given, or that `given` makes of the parameters that train, with `lr` where
    that is not None. Raises UsageError where it is over other parameters, or has a learning rate already."""
    parameters = [p for _, p in trainable(model)]
    if isinstance(given, torch.optim.Optimizer):
        if lr is not None:
            raise UsageError(f"lr is the optimizer's own where fit is given one, got lr={lr}; leave it out")
        optimizer = given
    else:
        optimizer = given(parameters, **({} if lr is None else {"lr": lr}))
    if not isinstance(optimizer, torch.optim.Optimizer):
        got = type(optimizer).__name__
        raise UsageError(f"optimizer must be a torch.optim.Optimizer, or make one of parameters, got {got}")
    theirs = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    if theirs != {id(p) for p in parameters}:
        raise UsageError(
            f"the optimizer has {len(theirs)} parameters that train, the model {len(parameters)} or others; "
            "make it of [p for p in model.parameters() if p.requires_grad]"
        )
    return optimizer


class TorchOptimizer:
    """An optimizer of torch.optim's kind behind the step's update; its learning rates follow the schedule.

    `state` is empty: no checkpoint holds it."""

    def __init__(self, flat: Flat, optimizer: torch.optim.Optimizer):
        self.state: dict[str, Tensor] = {}
        self._flat, self._torch = flat, optimizer
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]

    @torch.no_grad()
    def update(self, vector: Tensor, gradient: Tensor, lr: Tensor, allowed: Tensor) -> Tensor:
        """Take a step, as `Optimizer.update`; the host waits for the device."""
        moved = allowed & torch.isfinite(gradient).all()
        if not bool(moved):
            return moved
        before, parameters = vector.clone(), self._flat.parameters
        parts = gradient.split([p.numel() for p in parameters])
        for p, part in zip(parameters, parts, strict=True):
            p.grad = part.view(p.shape).clone()
        share = float(lr) / self._rates[0] if self._rates[0] else 1.0
        for group, rate in zip(self._torch.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        try:
            self._torch.step()
        except TypeError as error:
            name = type(self._torch).__name__
            raise UsageError(
                f"{name} can't take a step without a closure ({error}); take another optimizer"
            ) from error
        for p in parameters:
            p.grad = None
        if self._flat.mask is not None:
            vector.copy_(torch.where(self._flat.mask, vector, before))
        moved = torch.isfinite(vector).all()
        if not bool(moved):
            vector.copy_(before)
        return moved

    def dissolve(self) -> None:
        """Give the optimizer its learning rates back."""
        for group, rate in zip(self._torch.param_groups, self._rates, strict=True):
            group["lr"] = rate


def callbacks_of(
    given: Callable[..., Any] | Iterable[Callable[..., Any]] | None,
) -> tuple[Callable[..., Any], ...]:
    """Return one callback, or several, as a tuple. Raises UsageError for what can't be called."""
    callbacks = () if given is None else (given,) if callable(given) else tuple(given)
    for one in callbacks:
        if not callable(one):
            raise UsageError(
                f"callbacks are called with the model and an epoch's metrics, got {type(one).__name__}"
            )
    return callbacks
