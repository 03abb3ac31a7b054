"""γ and β of every BatchNorm in a few numbers a layer, taken at each epoch's end: one copy to the host,
whatever the depth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

SMALL = 0.01  # the paper's threshold: below it a channel counts as disabled
DIGITS = 4  # significant ones: 866 layers are then some 30 KB an epoch


AnyBatchNorm = nn.modules.batchnorm._BatchNorm


def affine_norms(
    model: nn.Module, kind: type[AnyBatchNorm] = nn.BatchNorm2d
) -> list[tuple[str, AnyBatchNorm]]:
    """Return (name, module) of every BatchNorm of this kind that has γ and β, in module order."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, kind) and m.affine]


def vectors(norms: list[AnyBatchNorm]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return (γ, β) of each, (C,) float64."""
    widths = np.cumsum([norm.num_features for norm in norms])[:-1]
    return _host([norm.weight for norm in norms], widths), _host([norm.bias for norm in norms], widths)


def statistics(model: nn.Module) -> dict[str, list[float]]:
    """Return by layer, in module order: mean and standard deviation of γ and of β, and the share of |γ| <
    0.01, rounded to 4 digits."""
    norms = [norm for _, norm in affine_norms(model)]
    gamma, beta = vectors(norms) if norms else ([], [])
    return {
        "gamma_mean": [_rounded(g.mean()) for g in gamma],
        "gamma_std": [_rounded(g.std()) for g in gamma],
        "gamma_small": [_rounded(np.mean(np.abs(g) < SMALL)) for g in gamma],
        "beta_mean": [_rounded(b.mean()) for b in beta],
        "beta_std": [_rounded(b.std()) for b in beta],
    }


def _host(tensors: list[Tensor], widths: np.ndarray) -> list[np.ndarray]:
    return np.split(torch.cat([t.detach() for t in tensors]).cpu().double().numpy(), widths)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
