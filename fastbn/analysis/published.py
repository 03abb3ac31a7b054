"""What the paper reports, for the report to set beside a run.

Source   Frankle, Schwab, Morcos, Training BatchNorm and Only BatchNorm, ICLR 2021 (arXiv 2003.00152).
"""

from __future__ import annotations

import dataclasses

PAPER = "Frankle, Schwab, Morcos, ICLR 2021"
DISABLED = 1 / 3  # "around a third of the random features", by |γ| < 0.01


@dataclasses.dataclass(frozen=True)
class Published:
    depth: int
    dataset: str
    train: str
    accuracy: float


PUBLISHED = (Published(866, "cifar10", "bn", 0.82), Published(866, "cifar10", "all", 0.928))  # 160 epochs of the whole training set
