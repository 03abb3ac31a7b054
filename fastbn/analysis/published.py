"""The paper's figures for a run's network, for the report to set beside it: those of
fastbn.experiments.paper."""

from __future__ import annotations

from typing import Any

from fastbn.experiments.paper import ALL, BN, DEPTHS, WIDE_ALL, WIDE_BN, WIDTHS

PAPER = "Frankle, Schwab, Morcos, ICLR 2021"
DISABLED = 1 / 3  # "around a third of the random features", by |γ| < 0.01


def published(config: dict[str, Any]) -> float | None:
    """Return the accuracy that the paper's figures show for a run's depth, width and what trains, on CIFAR-10
    after 160 epochs; a fraction."""
    wide = config["depth"] == 14 and config.get("width", 16) in WIDTHS
    if (
        config["dataset"] != "cifar10"
        or config.get("family", "cifar") != "cifar"
        or config.get("norm", "batch") != "batch"
    ):
        return None
    by = {"bn": WIDE_BN if wide else BN, "all": WIDE_ALL if wide else ALL}.get(config["train"])
    if by is None or not (wide or (config["depth"] in DEPTHS and config.get("width", 16) == 16)):
        return None
    return by[WIDTHS.index(config.get("width", 16)) if wide else DEPTHS.index(config["depth"])] / 100
