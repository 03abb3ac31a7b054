"""Frankle, Schwab, Morcos: Training BatchNorm and Only BatchNorm (ICLR 2021, arXiv:2003.00152).

The trainer's defaults are the recipe of the paper's public code, so a line says only what it varies. Figures
in percent; those called digitised are read off the figures of the paper's first version, by depth 14, 32, 56,
110, 218, 434, 866 or by width 16, 32, … 512."""

from __future__ import annotations

from fastbn.experiments.preset import Figure, Line, Preset, Quick

SOURCE = "Frankle, Schwab, Morcos 2021, arXiv:2003.00152"
RECIPE = (
    "The trainer's defaults: BatchNorm eps 1e-5 and momentum 0.1, γ uniform in [0, 1), β 0, He-normal "
    "convolutions without bias, "
    "1×1 projections with BatchNorm, stride on a block's first 3×3; SGD 0.9, lr 0.1 ÷10 at 80 and 120, 160 "
    "epochs, batch 128, "
    "weight decay 1e-4 on everything that trains, flip and crop. The paper's five seeds are three here; "
    "--seeds changes that."
)
DEPTHS = (14, 32, 56, 110, 218, 434, 866)
WIDTHS = (16, 32, 64, 128, 256, 512)
CIFAR = {"dataset": "cifar10", "epochs": 160}
# a cut in which BatchNorm alone leaves chance: 2,500 small steps
MINUTES = {"limit_train": 10_000, "limit_test": 2_000, "epochs": 8, "batch_size": 32}

BN = (48.2, 57.6, 63.0, 69.7, 75.9, 80.0, 82.0)
BN_OTHER_INIT = (50.7, 59.5, 64.9, 71.8, 77.4, 81.4, 83.9)
ALL = (90.5, 92.3, 93.2, 93.4, 93.4, 92.9, 92.8)
BN_SHORTCUT_OUTPUT = (63.3, 66.7, 71.1, 74.6, 78.2, 80.5, 82.0)
SHORTCUT_OUTPUT = (48.9, 45.6, 42.5, 19.1, 17.1, 12.8, 12.9)
WIDE_BN = (48.2, 53.3, 59.5, 64.4, 68.2, 73.4)
WIDE_ALL = (90.5, 93.0, 94.1, 94.8, 95.1, 95.2)
WIDE_BN_SHORTCUT_OUTPUT = (63.3, 72.6, 79.5, 83.4, 85.6, 87.0)


def digitised(value: float) -> tuple[Figure, ...]:
    """Return one figure in percent, read off a plot, as a line takes it."""
    return (Figure(value, "digitised"),)


def depths(train: str, values: tuple[float, ...] = ()) -> tuple[Line, ...]:
    """Return a line per depth, of one mode."""
    figures = [digitised(value) for value in values] or [()] * len(DEPTHS)
    return tuple(
        Line(f"{depth} {train}", {**CIFAR, "depth": depth, "train": train}, figure)
        for depth, figure in zip(DEPTHS, figures, strict=True)
    )


def _bn_by_depth() -> tuple[Line, ...]:
    lines = []
    for depth, value, other in zip(DEPTHS, BN, BN_OTHER_INIT, strict=True):
        figures = (Figure(value, "printed" if depth == 866 else "digitised"), Figure(other, "unknown init"))
        pruned = (Figure(27.0, "printed", "gamma_below_0.01"),) if depth == 110 else ()
        lines.append(Line(f"{depth} bn", {**CIFAR, "depth": depth, "train": "bn"}, figures + pruned))
    return tuple(lines)


def _all_by_depth() -> tuple[Line, ...]:
    lines = list(depths("all", ALL))
    lines[3] = Line(
        lines[3].name, lines[3].settings, (*lines[3].published, Figure(9.0, "printed", "gamma_below_0.01"))
    )
    return tuple(lines)


def widths(train: str, values: tuple[float, ...]) -> tuple[Line, ...]:
    """Return a line per width of ResNet-14, of one mode, with the figures in percent."""
    return tuple(
        Line(
            f"14 width {width} {train}",
            {**CIFAR, "depth": 14, "width": width, "train": train},
            digitised(value),
        )
        for width, value in zip(WIDTHS, values, strict=True)
    )


def varied(option: str, values: tuple[str, ...]) -> tuple[Line, ...]:
    """Return BN only at three depths, by one option."""
    return tuple(
        Line(f"{depth} {value}", {**CIFAR, "depth": depth, "train": "bn", option: value})
        for depth in (14, 56, 110)
        for value in values
    )


IMAGENET = {
    "dataset": "imagenet",
    "family": "imagenet",
    "epochs": 90,
    "batch_size": 1024,
    "lr": 0.4,
    "milestones": (30, 60, 80),
}
IMAGENET |= {"warmup_epochs": 5}

PRESETS = (
    Preset(
        "paper-depth",
        "BatchNorm only and everything, by depth",
        SOURCE,
        RECIPE
        + " Controls at depth 14: none (the paper: about 10), and two weights a channel in BatchNorm's "
        "place. Depth 8 is ours: a "
        "shallow end that a cut of minutes can tell from 14.",
        (
            Line("8 bn", {**CIFAR, "depth": 8, "train": "bn"}),
            *_bn_by_depth(),
            *_all_by_depth(),
            Line("14 none", {**CIFAR, "depth": 14, "train": "none"}, digitised(10.0)),
            Line("14 random=2", {**CIFAR, "depth": 14, "train": "random=2"}),
        ),
        Quick(
            ("8 bn", "14 bn", "32 bn", "14 none", "14 random=2"),
            {"limit_train": 20_000, "limit_test": 5_000, "epochs": 8, "batch_size": 64},
        ),
    ),
    Preset(
        "paper-width",
        "ResNet-14 by width",
        SOURCE,
        RECIPE,
        (
            *widths("bn", WIDE_BN),
            *widths("all", WIDE_ALL),
            *widths("bn+shortcut+output", WIDE_BN_SHORTCUT_OUTPUT),
        ),
        Quick(("14 width 16 bn", "14 width 32 bn", "14 width 16 bn+shortcut+output"), MINUTES),
    ),
    Preset(
        "paper-what-trains",
        "BatchNorm, shortcuts and output, together and apart, by depth",
        SOURCE,
        RECIPE,
        (
            *depths("bn", BN),
            *depths("bn+shortcut+output", BN_SHORTCUT_OUTPUT),
            *depths("shortcut+output", SHORTCUT_OUTPUT),
            *depths("bn+output"),
            *depths("output"),
            Line("14 none", {**CIFAR, "depth": 14, "train": "none"}, digitised(10.0)),
        ),
        Quick(("14 bn", "14 bn+shortcut+output", "14 shortcut+output", "14 output", "14 none"), MINUTES),
    ),
    Preset(
        "paper-bn-init",
        "BatchNorm only, by the initialisation of γ and β",
        SOURCE,
        RECIPE + " The paper shows curves; no figure is taken from them.",
        (
            *varied("gamma_init", ("uniform", "ones", "uniform_symmetric", "normal")),
            *(
                Line(f"{depth} beta ones", {**CIFAR, "depth": depth, "train": "bn", "beta_init": "ones"})
                for depth in (14, 56, 110)
            ),
        ),
        Quick(("14 uniform", "14 ones", "14 uniform_symmetric", "14 normal", "14 beta ones"), MINUTES),
    ),
    Preset(
        "paper-weight-init",
        "BatchNorm only, by the distribution of the frozen weights",
        SOURCE,
        RECIPE + " The paper shows curves; no figure is taken from them.",
        varied("weight_init", ("kaiming_normal", "kaiming_uniform", "orthogonal", "binary")),
        Quick(("14 kaiming_normal", "14 kaiming_uniform", "14 orthogonal", "14 binary"), MINUTES),
    ),
    Preset(
        "paper-random-params",
        "As many random weights a channel as BatchNorm has parameters, and more",
        SOURCE,
        RECIPE
        + " random=K trains K weights of each channel of every convolution, BatchNorm frozen as drawn.",
        (
            *depths("bn", BN),
            *depths("random=2"),
            *(Line(f"14 random={k}", {**CIFAR, "depth": 14, "train": f"random={k}"}) for k in (1, 4, 8, 16)),
        ),
        Quick(("14 bn", "14 random=2", "14 random=8"), MINUTES),
    ),
    Preset(
        "paper-frozen-bn",
        "Everything but BatchNorm, beside everything",
        SOURCE,
        RECIPE + " all-bn leaves γ and β as drawn.",
        (*depths("all", ALL), *depths("all-bn")),
        Quick(("14 all", "14 all-bn"), MINUTES),
    ),
    Preset(
        "paper-imagenet",
        "BatchNorm only on ImageNet, by depth",
        SOURCE,
        "ResNets of the ImageNet family on 224² crops: 90 epochs, batch 1024, lr 0.4 ÷10 at 30, 60 and 80, "
        "five epochs of warm-up, as "
        "the paper's public code has them; the rest are the trainer's defaults.",
        tuple(
            Line(
                f"{depth} bn",
                {**IMAGENET, "depth": depth, "train": "bn"},
                (Figure(32.0, "printed", "test_top5_accuracy"),) if depth == 200 else (),
            )
            for depth in (18, 34, 50, 101, 152, 200)
        ),
        "its question is ImageNet's images, and no cut of minutes leaves chance on them",
        seeds=1,
    ),
)
