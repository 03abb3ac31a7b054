"""Adaptation by statistics alone: each batch's own (AdaBN), or a blend of them with the source's (α-BN)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastbn.adapt.adaptation import Adaptation, check_tracked, evaluating, put, state_of
from fastbn.engine.fuse import fuse, fused_forward
from fastbn.errors import UsageError


class AdaBN(Adaptation):
    """Normalise each batch by its own mean and variance in place of the running ones.

    Source   Nado et al. 2020, Evaluating Prediction-Time Batch Normalization; `estimate`: Li et al. 2016,
    Revisiting Batch Normalization For Practical Domain Adaptation.

    model: any with BatchNorm, fused or not. A call takes what the model takes, and returns its result as it
    is, without a graph. A batch should hold some dozen images of about the classes that the network was
    trained on, for its statistics are taken for the domain's. Raises UsageError for a model without
    BatchNorm; a batch with one value a channel raises as in training.

        adabn = fastbn.adapt.AdaBN(model)
        logits = adabn(x)                       # x (N, 3, H, W) -> (N, classes)
        adabn.estimate(batches)                 # or the domain's statistics once: then model.eval()(x)
    """

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._by_the_batch():
            return self.model(*args, **kwargs)

    @torch.no_grad()
    def estimate(self, batches: Iterable[Tensor]) -> None:
        """Set the running statistics to the mean of these batches' means and (unbiased) variances, each batch
        normalised by its own: `model.eval()` then serves the new domain, one image at a time too, and
        `fastbn.save` keeps them. γ and β stay.

        Raises UsageError, nothing changed, where there is no batch or a BatchNorm keeps no running
        statistics."""
        norms = self._norms.values()
        check_tracked(self._norms, "AdaBN.estimate")
        kept, momenta, count = state_of(norms), [norm.momentum for norm in norms], 0
        try:
            with evaluating(self.model):
                for norm in norms:
                    norm.reset_running_stats()
                    norm.training, norm.momentum = True, None  # the cumulative average
                for x in batches:
                    self.model(x)
                    count += 1
            if not count:
                raise UsageError(
                    "AdaBN.estimate was given no batch; give an iterable of the domain's batches"
                )
        except BaseException:
            put(norms, kept)
            raise
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


class AlphaBN(Adaptation):
    """Normalise by a blend of the source's statistics and the batch's, layer by layer:

        μ = α·μ_source + (1 − α)·μ_batch        σ² = α·σ²_source + (1 − α)·σ²_batch

    Source   You, Li, Zhao 2021, Test-time Batch Statistics Calibration for Covariate Shift; with
    α = N / (N + n) it is Schneider et al. 2020, Improving robustness against common corruptions by covariate
    shift adaptation, for a batch of n and a source that counts as N images.

    alpha: the source's share, from 0 (AdaBN) to 1 (the network as trained). It steadies small batches, of
    one image too. The engines normalise by one kind of statistics or the other, so that a fused model runs
    stock in these calls, and is fused again after them. A call takes what the model takes, and returns its
    result as it is, without a graph. Raises UsageError for another alpha, for a model without BatchNorm, and
    for a BatchNorm that keeps no running statistics.

        logits = fastbn.adapt.AlphaBN(model, alpha=0.5)(x)          # x (N, 3, H, W) -> (N, classes)
    """

    def __init__(self, model: nn.Module, alpha: float):
        if not 0 <= alpha <= 1:
            raise UsageError(f"alpha is the source's share of the statistics, 0 … 1; got {alpha!r}")
        super().__init__(model)
        check_tracked(self._norms, "AlphaBN")
        self.alpha = alpha

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with stock(self.model), evaluating(self.model), _Blend(self.alpha):
            return self.model(*args, **kwargs)


class _Blend(TorchFunctionMode):
    """Inside, whatever calls F.batch_norm in evaluation normalises by the blend of the statistics that it has
    and its input's."""

    def __init__(self, alpha: float):
        super().__init__()
        self._alpha = alpha

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return self._blended(*args, **kwargs) if function is F.batch_norm else function(*args, **kwargs)

    def _blended(
        self, x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if not training and mean is not None and var is not None:
            wide, others = x.to(mean.dtype), [d for d in range(x.dim()) if d != 1]
            found_var, found_mean = torch.var_mean(wide, others, correction=0)
            mean, var = torch.lerp(found_mean, mean, self._alpha), torch.lerp(found_var, var, self._alpha)
        return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)


@contextlib.contextmanager
def stock(model: nn.Module) -> Iterator[None]:
    """Inside, what was fused in this model runs stock."""
    fused = [module for module in model.modules() if fused_forward(module) is not None]
    names = ("forward", "_fused_forward")
    given = [{name: vars(module)[name] for name in names if name in vars(module)} for module in fused]
    for module in fused:
        fuse(module, "stock")
    try:
        yield
    finally:
        for module, kept in zip(fused, given, strict=True):
            vars(module).update(kept)
