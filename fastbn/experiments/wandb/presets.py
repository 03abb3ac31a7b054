"""Sayak Paul: The Power of Random Features of a CNN (W&B report, 2020), and its public notebooks."""

from __future__ import annotations

from fastbn.experiments.preset import Figure, Line, Preset, Quick

SOURCE = "Paul 2020, The Power of Random Features of a CNN, wandb.ai/sayakpaul/training-bn-only"
STATES = (
    "The bottleneck ResNet-20 of the Keras Idiomatic Programmer: biased convolutions, stride on the 3×3, "
    "biased projections without "
    "BatchNorm; Keras's BatchNorm (γ 1, eps 1e-3, momentum 0.99 in Keras's sense, 0.01 in torch's) and "
    "He-normal weights (ours are not "
    "cut at ±2σ). Adam 1e-3 (Keras's eps is 1e-7, ours 1e-8), batch 1024, 75 epochs, pixels in [0, 1], a "
    "crop from 40×40, brightness ±0.5, "
    "no flip, no weight decay. The study has one seed."
)
NET = {
    "family": "wandb",
    "depth": 20,
    "norm_eps": 1e-3,
    "norm_momentum": 0.01,
    "conv_bias": True,
    "gamma_init": "ones",
}
RECIPE = {
    "optimizer": "adam",
    "lr": 1e-3,
    "schedule": "constant",
    "weight_decay": 0.0,
    "batch_size": 1024,
    "epochs": 75,
}
BASE = {**NET, **RECIPE, "dataset": "cifar10", "augment": "crop+brightness", "pixels": "unit"}
BATCHES, BY_BATCH = (256, 512, 1024, 2048), (48.9, 44.5, 42.6, 39.1)
MINUTES = {"limit_train": 4_000, "limit_test": 1_000, "epochs": 2}


def line(name: str, published: float | None = None, **settings: object) -> Line:
    """Return a line of the study: its settings over BASE, and its printed figure in percent where there is
    one."""
    return Line(name, {**BASE, **settings}, () if published is None else (Figure(published, "printed"),))


PRESETS = (
    Preset(
        "wandb-full-vs-bn",
        "Everything beside BatchNorm only, by Adam",
        SOURCE,
        STATES + " It reports 36 ms a step for everything and 28 for BatchNorm only on a P100, 1.31 times.",
        (line("all", 82.2, train="all"), line("bn", 43.7, train="bn")),
        "at the study's learning rate BatchNorm only stays near chance for more steps than minutes hold",
    ),
    Preset(
        "wandb-batch-size",
        "BatchNorm only, by batch size",
        SOURCE,
        STATES,
        tuple(
            line(f"bn batch {n}", value, train="bn", batch_size=n)
            for n, value in zip(BATCHES, BY_BATCH, strict=True)
        ),
        "batches of 256 to 2,048 need more steps than a cut of minutes holds",
    ),
    Preset(
        "wandb-schedules",
        "BatchNorm only, by learning-rate schedule",
        SOURCE,
        STATES
        + (
            " The report's schedules are drawn, not printed: constant, cosine, ÷10 at half and three "
            "quarters, and warm-up are ours."
        ),
        (
            line("constant", train="bn"),
            line("cosine", train="bn", schedule="cosine"),
            line("multistep", train="bn", schedule="multistep"),
            line("warm-up and cosine", train="bn", schedule="cosine", warmup_epochs=5, lr=1e-2),
        ),
        "its schedules part in the last of 75 epochs, which no cut of minutes reaches",
    ),
    Preset(
        "wandb-all-frozen",
        "Nothing trains",
        SOURCE,
        STATES,
        (line("none", 10.0, train="none"),),
        Quick(("none",), MINUTES),
    ),
)
