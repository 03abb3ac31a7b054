"""SGD and Adam over one flat vector, as torch.optim defines them, with an update that a device-side flag can
withhold.

SGD      d = g + λ·p;  b ← m·b + d;  p ← p − lr·b            (Nesterov: p ← p − lr·(d + m·b))
Adam     m ← β₁m + (1−β₁)d;  v ← β₂v + (1−β₂)d²;  p ← p − lr·m̂ / (√v̂ + ε)     Kingma, Ba 2015; λ·p enters d,
as in torch.optim.Adam"""

from __future__ import annotations

import torch
from torch import Tensor

from fastbn.engine.triton import step_kernels
from fastbn.recipe import ResolvedRecipe

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Optimizer:
    """`state` holds everything that a checkpoint needs, by name."""

    def __init__(self, recipe: ResolvedRecipe, vector: Tensor, mask: Tensor | None = None):
        """mask (n,): where it is false the vector keeps its bits; None trains all."""
        self.recipe, self.mask = recipe, mask
        names = ("momentum",) if recipe.optimizer == "sgd" else ("mean", "square")
        self.state = {name: torch.zeros_like(vector) for name in names}
        if recipe.optimizer == "adam":
            self.state["steps"] = torch.zeros((), dtype=vector.dtype, device=vector.device)
        usable = mask is None and vector.dtype == torch.float32 and step_kernels.usable(vector.device)
        self._kernels = step_kernels.Update(vector) if usable else None

    @torch.no_grad()
    def update(self, vector: Tensor, gradient: Tensor, lr: Tensor, allowed: Tensor) -> Tensor:
        """Take one step, in place. Where `allowed` is false, or the step would not be finite (a gradient is
        not, or it or the state overflows), nothing moves. Return whether it moved; it, `lr` (float64) and
        `allowed` are scalars on the device."""
        if self._kernels is not None:
            return self._by_kernels(self._kernels, vector, gradient, lr, allowed)
        d = gradient.add(vector, alpha=self.recipe.weight_decay)
        if self.mask is not None:
            d *= self.mask  # with the decay in it: the state stays 0, and so does the change
        state, change = self._sgd(d) if self.recipe.optimizer == "sgd" else self._adam(d)
        updated = vector - change * lr.to(vector.dtype)
        # v may overflow to a change of 0
        finite = [torch.isfinite(value).all() for value in (updated, *state.values())]
        moved = allowed & torch.stack(finite).all()
        vector.copy_(torch.where(moved, updated, vector))
        for name, value in state.items():
            self.state[name].copy_(torch.where(moved, value, self.state[name]))
        return moved

    def _by_kernels(
        self, kernels: step_kernels.Update, vector: Tensor, gradient: Tensor, lr: Tensor, allowed: Tensor
    ) -> Tensor:
        recipe, state = self.recipe, self.state
        if recipe.optimizer == "sgd":
            constants = {"momentum_factor": recipe.momentum, "nesterov": recipe.nesterov}
            return kernels.sgd(
                vector,
                gradient,
                state["momentum"],
                lr,
                allowed,
                weight_decay=recipe.weight_decay,
                **constants,
            )
        vectors = state["mean"], state["square"], state["steps"]
        return kernels.adam(
            vector,
            gradient,
            *vectors,
            lr,
            allowed,
            weight_decay=recipe.weight_decay,
            beta1=BETA1,
            beta2=BETA2,
            eps=EPS,
        )

    def _sgd(self, d: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        momentum = self.state["momentum"] * self.recipe.momentum + d
        return {"momentum": momentum}, d.add(
            momentum, alpha=self.recipe.momentum
        ) if self.recipe.nesterov else momentum

    def _adam(self, d: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        steps = self.state["steps"] + 1
        mean = self.state["mean"].lerp(d, 1 - BETA1)
        square = self.state["square"] * BETA2 + d * d * (1 - BETA2)
        corrected = (square / (1 - BETA2**steps)).sqrt() + EPS
        return {"steps": steps, "mean": mean, "square": square}, mean / (1 - BETA1**steps) / corrected
