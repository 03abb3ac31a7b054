"""Presets for questions that the studies leave: BatchNorm first and then everything, lower layers alone,
other norms. No published figures."""

from __future__ import annotations

from fastbn.experiments.paper import CIFAR, MINUTES, RECIPE
from fastbn.experiments.preset import Line, Preset, Quick

R20 = {**CIFAR, "depth": 20}
R14 = {**CIFAR, "depth": 14}
SHORT = {"epochs": 40}
CUT = " Cut to 40 epochs of 160, the learning rate divided at 20 and 30."
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
    Preset(
        "trained-parameters",
        "About as many trained parameters in three places, at depth 14",
        "a question of ours; random=2 is the paper's control, of which no code is published",
        RECIPE
        + " BatchNorm's two parameters a channel, two random weights of each channel of a convolution in "
        "their place, the output "
        "layer alone, and nothing.",
        tuple(Line(train, {**R14, "train": train}) for train in ("bn", "random=2", "output", "none")),
        Quick(("bn", "random=2", "output"), MINUTES),
    ),
    Preset(
        "bn-then-all-cut40",
        "BatchNorm first, then everything, cut to 40 epochs",
        "a question of the W&B report",
        RECIPE + CUT,
        (
            Line("bn", {**R14, **SHORT, "train": "bn"}),
            Line("bn, then all", {**R14, **SHORT, "train": "all"}, after="bn"),
            Line("all", {**R14, **SHORT, "train": "all"}),
        ),
        Quick(("bn", "bn, then all", "all"), MINUTES),
        mark="cut",
    ),
    Preset(
        "lower-layers-cut40",
        "What the lower layers' BatchNorm can do alone, cut to 40 epochs",
        "a question of the W&B report",
        RECIPE
        + CUT
        + (
            " ResNet-20 has 21 BatchNorm layers, two of them on projections; first-9 and last-9 count in "
            "module order."
        ),
        tuple(Line(train, {**R20, **SHORT, "train": train}) for train in ("bn", "bn@first-9", "bn@last-9")),
        Quick(("bn", "bn@first-9", "bn@last-9"), MINUTES),
        mark="cut",
    ),
    Preset(
        "instance-norm-cut40",
        "Instance and group norm in BatchNorm's place, cut to 40 epochs",
        "a question of Torri's study",
        RECIPE + CUT + " Instance norm has no running statistics; group norm has 8 groups.",
        tuple(
            Line(f"{norm} bn", {**R14, **SHORT, "train": "bn", "norm": norm})
            for norm in ("batch", "instance", "group")
        ),
        Quick(("batch bn", "instance bn", "group bn"), MINUTES),
        mark="cut",
    ),
)
