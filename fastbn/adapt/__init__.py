"""Test-time adaptation: a trained network meets images of another kind, without labels, and adapts through
its BatchNorms alone.

    AdaBN     μ, σ² are the batch's own                       Nado et al. 2020; Li et al. 2016
    AlphaBN   μ = α·μ_source + (1 − α)·μ_batch, and so σ²     You et al. 2021; Schneider et al. 2020
    Tent      AdaBN, and a step on γ and β down the entropy   Wang et al. 2021

Each is called as the model is, and takes everything back by `reset()`. A call leaves the model's modes and
running statistics as they were; a model that was given the engine by `fastbn.fuse` keeps it.

    tent = fastbn.adapt.Tent(fastbn.fuse(model), lr=1e-3)
    for x in batches:                       # (N, 3, H, W), as the network was trained on
        predictions = tent(x).argmax(1)     # (N,)
    tent.reset()                            # γ and β as they were, to the bit
"""

from __future__ import annotations

from fastbn.adapt.statistics import AdaBN, AlphaBN
from fastbn.adapt.tent import Tent

__all__ = ["AdaBN", "AlphaBN", "Tent"]
