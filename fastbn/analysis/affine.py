"""γ and β as they were learned: vectors by layer, histograms over shared bins, the share of |γ| under a
threshold, their course."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from fastbn.errors import UsageError
from fastbn.training.affine_statistics import SMALL, AnyBatchNorm, affine_norms, vectors


@dataclasses.dataclass(frozen=True)
class Affine:
    """Every BatchNorm with γ and β, in module order."""

    names: list[str]
    gamma: list[np.ndarray]  # (C,) float64 each
    beta: list[np.ndarray]

    def of(self, which: str) -> list[np.ndarray]:
        return {"gamma": self.gamma, "beta": self.beta}[which]


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of γ or β; a value on an inner edge belongs to the bin on its right."""

    edges: np.ndarray  # (B + 1,)
    layers: np.ndarray  # (L, B) int64
    names: list[str]  # of the layers

    @property
    def counts(self) -> np.ndarray:
        """Return (B,), the counts of all layers."""
        return self.layers.sum(0)

    @property
    def shares(self) -> np.ndarray:
        """Return (B,), the shares of all channels, by bin."""
        return self.counts / self.counts.sum()


def affine(model: nn.Module) -> Affine:
    """Return γ and β of a network. Raises UsageError for one without a BatchNorm that has γ and β."""
    norms = affine_norms(model, AnyBatchNorm)
    if not norms:
        raise UsageError(
            f"{type(model).__name__} has no BatchNorm with γ and β: there is nothing to look into"
        )
    return Affine([name for name, _ in norms], *vectors([norm for _, norm in norms]))


def edges(states: Sequence[Affine], which: str, bins: int = 40) -> np.ndarray:
    """Return (bins + 1,), the edges of equal bins that hold every value of several networks, one edge on 0
    where they lie on both sides of it."""
    values = np.concatenate([v for one in states for v in one.of(which)])
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if low == high:
        return np.linspace(-0.5, 0.5, bins + 1)
    below = min(max(round(bins * -low / (high - low)), int(low < 0)), bins - int(high > 0))
    width = max(-low / below if below else 0.0, high / (bins - below) if below < bins else 0.0)
    # the outermost values, whatever the rounding, are inside
    return width * (1 + 1e-12) * np.arange(-below, bins - below + 1)


def histogram(state: Affine, which: str, at: np.ndarray) -> Histogram:
    """Return the histogram of γ ("gamma") or β ("beta") between these edges (B + 1,); what lies outside is
    not counted."""
    layers = np.stack([np.histogram(values, at)[0] for values in state.of(which)])
    return Histogram(at, layers, state.names)


def small(state: Affine, threshold: float = SMALL) -> np.ndarray:
    """Return (L,), the share of channels with |γ| < threshold, by layer."""
    return np.array([np.mean(np.abs(g) < threshold) for g in state.gamma])


def small_overall(state: Affine, threshold: float = SMALL) -> float:
    """Return the share over all channels."""
    return float(np.mean(np.abs(np.concatenate(state.gamma)) < threshold))


def course(lines: Sequence[dict[str, Any]], what: str) -> np.ndarray:
    """Return (epochs, L): gamma_mean, gamma_std, gamma_small, beta_mean or beta_std after each epoch, as
    `fit` recorded it.

    Raises UsageError for a history without it.
    """
    if not lines or any(what not in line.get("norms", {}) for line in lines):
        raise UsageError(
            f"the history holds no {what} by epoch; it was trained by an earlier version of fastbn"
        )
    return np.array([line["norms"][what] for line in lines], dtype=np.float64)


def overall(lines: Sequence[dict[str, Any]], state: Affine, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean, standard deviation), (epochs,) each, of γ or β over all channels of all layers, from what
    was recorded by layer: of parts with means m, deviations s and shares w, the whole's variance is Σ w·(s² +
    m²) − (Σ w·m)²."""
    mean, std = course(lines, f"{which}_mean"), course(lines, f"{which}_std")
    widths = np.array([len(g) for g in state.gamma])
    share = widths / widths.sum()
    whole = mean @ share
    return whole, np.sqrt(np.maximum((std**2 + mean**2) @ share - whole**2, 0.0))
