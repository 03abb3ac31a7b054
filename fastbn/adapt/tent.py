"""Adaptation by entropy: γ and β learn from the network's own predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastbn.adapt.adaptation import Adaptation
from fastbn.errors import Diverged, UsageError
from fastbn.trainable import freeze
from fastbn.training.state.custom import MakeOptimizer


class Tent(Adaptation):
    """Normalise each batch by its own statistics, and after it take a step on γ and β down the mean entropy
    of its predictions:

        H(p) = −Σ_k p_k·log p_k        p = softmax(logits)

    Source   Wang, Shelhamer, Liu, Olshausen, Darrell 2021, Tent: Fully Test-Time Adaptation by Entropy
    Minimization (Adam, 0.001 and batches of 200 for CIFAR-10-C).

    model: any with BatchNorm, fused or not; it is frozen to its norms by `fastbn.freeze(model, "bn")`. A call
    takes what the model takes, and returns the logits of before its last step, (N, classes, …), without a
    graph.
    lr, optimizer: `optimizer(parameters, lr=lr)` is made anew by each reset.
    steps: forwards and steps a call.
    episodic: reset before each call, so that no batch knows of another.
    logits: takes the logits from the model's result, as `lambda result: result.logits`; None: they are it.

    Raises UsageError for a model without BatchNorm or without γ and β, for lr not above 0 and steps below 1;
    Diverged where the entropy is not finite, before that touches γ and β: `reset()` and a lower lr help.

        tent = fastbn.adapt.Tent(fastbn.fuse(model), lr=1e-3)
        logits = tent(x)                                            # x (N, 3, H, W) -> (N, classes)
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        steps: int = 1,
        episodic: bool = False,
        optimizer: MakeOptimizer = torch.optim.Adam,
        logits: Callable[[Any], Tensor] | None = None,
    ):
        if not lr > 0 or steps < 1:
            raise UsageError(
                f"Tent takes a learning rate above 0 and at least 1 step; got {lr!r} and {steps!r}"
            )
        super().__init__(model)
        freeze(model, "bn")
        self.lr, self.steps, self.episodic, self._make, self._logits = lr, steps, episodic, optimizer, logits
        self.reset()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.episodic:
            self.reset()
        # also where the caller takes no gradients; inference tensors can't be saved for a backward
        with torch.inference_mode(False), torch.enable_grad(), self._by_the_batch():
            args, kwargs = torch.utils._pytree.tree_map(_usable, (args, kwargs))
            for _ in range(self.steps):
                result = self.model(*args, **kwargs)
                logits: Tensor = result if self._logits is None else self._logits(result)
                self._step(logits)
        return logits.detach()

    def _step(self, logits: Tensor) -> None:
        entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        if not bool(torch.isfinite(entropy)):
            raise Diverged("the entropy of a batch's predictions is not finite; reset() and lower lr")
        self.optimizer.zero_grad()
        entropy.backward()
        self.optimizer.step()

    def reset(self) -> None:
        """Give γ, β and the running statistics back the bits that they had when adaptation began, and forget
        the optimizer's averages."""
        super().reset()
        self.optimizer = self._make([p for p in self.model.parameters() if p.requires_grad], lr=self.lr)


def _usable(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
