"""The Keras study: ResNet-50, 101 and 152 as keras.applications builds them, BatchNorm only, on CIFAR-10
at 32²."""

from __future__ import annotations

from fastbn.experiments.preset import Figure, Line, Preset, Quick

NET = {
    "family": "imagenet",
    "norm_eps": 1.001e-5,
    "norm_momentum": 0.01,
    "conv_bias": True,
    "stride_on": "1x1",
}
NET |= {"weight_init": "glorot_uniform", "gamma_init": "he_normal", "dataset": "cifar10"}
RECIPE = {
    "optimizer": "adam",
    "lr": 0.01,
    "schedule": "constant",
    "weight_decay": 0.0,
    "batch_size": 1024,
    "epochs": 50,
}
FULL = {"train": "all", "lr": 1e-3}
# enough steps to leave chance, and running statistics that follow them: at 0.01 they would still be the first
MINUTES = {"limit_train": 2_000, "limit_test": 500, "batch_size": 32, "epochs": 4, "norm_momentum": 0.1}
BASE = {**NET, **RECIPE, "augment": "none", "pixels": "unit"}


def figures(train: float, validation: float) -> tuple[Figure, ...]:
    """Return the study's two printed figures of a network, in percent: on the validation and on the training
    set."""
    return Figure(validation, "printed"), Figure(train, "printed", "train_accuracy")


PRESETS = (
    Preset(
        "keras-resnets",
        "Keras's ImageNet ResNets on CIFAR-10 at 32²",
        "a Keras re-implementation of arXiv:2003.00152",
        "keras.applications' ResNets: biased convolutions, a bottleneck's stride on its first 1×1, "
        "BatchNorm eps 1.001e-5, momentum 0.99 "
        "in Keras's sense (0.01 in torch's), Glorot-uniform weights (Keras's default; biases 0 there, "
        "uniform here, without effect before "
        "a BatchNorm), γ he_normal; Adam 0.01, batch 1024, 50 epochs, pixels / 255, no augmentation, no "
        "weight decay. Its question of SELU "
        "in place of BatchNorm and ReLU is asked at depth 50, where everything trains. The study has one "
        "seed.",
        (
            Line("50 bn", {**BASE, "depth": 50, "train": "bn"}, figures(50.0, 45.0)),
            Line("101 bn", {**BASE, "depth": 101, "train": "bn"}, figures(60.0, 52.0)),
            Line("152 bn", {**BASE, "depth": 152, "train": "bn"}, figures(62.0, 50.0)),
            Line("50 all", {**BASE, "depth": 50, **FULL}),
            Line("50 all selu", {**BASE, "depth": 50, **FULL, "norm": "selu"}),
        ),
        Quick(
            ("50 bn", "50 all selu"),
            MINUTES,
        ),
    ),
    Preset(
        "keras-resnets-cut10",
        "SELU in place of BatchNorm and ReLU at depth 50, cut to 10 epochs",
        "a Keras re-implementation of arXiv:2003.00152",
        "As keras-resnets, everything trained, cut to 10 epochs of 50.",
        (
            Line("50 all", {**BASE, "depth": 50, **FULL, "epochs": 10}),
            Line("50 all selu", {**BASE, "depth": 50, **FULL, "epochs": 10, "norm": "selu"}),
        ),
        Quick(
            ("50 all", "50 all selu"),
            MINUTES,
        ),
        seeds=1,
        mark="cut",
    ),
)
