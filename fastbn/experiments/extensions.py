"""Questions that the studies leave: BatchNorm first and then everything, lower layers alone, other norms.
No published figures."""

from __future__ import annotations

from fastbn.experiments.paper import CIFAR, MINUTES, RECIPE
from fastbn.experiments.preset import Line, Preset, Quick

R20 = {**CIFAR, "depth": 20}
R14 = {**CIFAR, "depth": 14}
SELECTED = ("bn", "bn@first-9", "bn@last-9", "bn@layer1", "bn@layer2", "bn@layer3")

PRESETS = (
    Preset(
        "bn-then-all",
        "BatchNorm first, then everything, beside everything at once",
        "a question of the W&B report",
        RECIPE
        + (
            " The second run starts from the first one's end, its learning rate anew; 'all 320' has as many "
            "epochs as both together."
        ),
        (
            Line("bn", {**R14, "train": "bn"}),
            Line("bn, then all", {**R14, "train": "all"}, after="bn"),
            Line("all", {**R14, "train": "all"}),
            Line("all 320", {**R14, "train": "all", "epochs": 320}),
        ),
        Quick(("bn", "bn, then all", "all"), MINUTES),
    ),
    Preset(
        "lower-layers",
        "What the lower layers' BatchNorm can do alone",
        "a question of the W&B report",
        RECIPE
        + (
            " ResNet-20 has 21 BatchNorm layers, two of them on projections; first-9 and last-9 count in "
            "module order."
        ),
        tuple(Line(train, {**R20, "train": train}) for train in SELECTED),
        Quick(("bn", "bn@first-9", "bn@last-9"), MINUTES),
    ),
    Preset(
        "instance-norm",
        "Instance and group norm in BatchNorm's place",
        "a question of Torri's study",
        RECIPE + " Instance norm has no running statistics; group norm has 8 groups.",
        tuple(
            Line(f"{norm} {train}", {**R14, "train": train, "norm": norm})
            for norm in ("batch", "instance", "group")
            for train in ("bn", "all")
        ),
        Quick(("batch bn", "instance bn", "group bn"), MINUTES),
    ),
)
