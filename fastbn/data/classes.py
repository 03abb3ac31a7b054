"""The limit on classes where nothing names them: the labels themselves decide, and one that is damaged must
not."""

from __future__ import annotations

from torch import Tensor

FEW = 1_000  # classes that any set may have: ImageNet's, of which a small set holds a few
SPARSE = 32  # beyond that, classes for each one that has a sample


def most_classes(labels: Tensor) -> int:
    """Return the number that every label must be below: 1,000, or 32 times the number of different labels
    where that is more.

    labels: (N,) integers. A network has a row of weights for each class up to the largest label: one damaged
    label would otherwise ask for any amount of memory, and for more classes than anything could be learned
    of.
    """
    return max(FEW, SPARSE * len(labels.unique()))


def rule(labels: Tensor) -> str:
    """Return the limit in words, for the message that refuses a label."""
    return (
        f"below {most_classes(labels):,} in a set of {len(labels):,} samples with "
        f"{len(labels.unique()):,} different ones"
    )
