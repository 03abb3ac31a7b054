"""Torri's study: is it convolutions alone in which BatchNorm alone learns? An MLP on CIFAR-10, an LSTM on
tweets."""

from __future__ import annotations

from fastbn.experiments.preset import Figure, Line, Preset, Quick

SOURCE = "Torri, BatchNorm alone beyond convolutional networks"
RECIPE = {"optimizer": "adam", "lr": 1e-3, "schedule": "constant", "weight_decay": 0.0, "batch_size": 32}
TORCH = {"weight_init": "torch_uniform", "gamma_init": "ones"}  # what torch's layers are made with
MLP = {"family": "mlp", "depth": 4, "dataset": "cifar10", **TORCH, **RECIPE, "epochs": 20, "augment": "none"}
LSTM = {"family": "lstm", "depth": 1, "dataset": "tweets", **TORCH, **RECIPE, "epochs": 10}
STATES = (
    "torch's own initialisation, γ 1, BatchNorm eps 1e-5 and momentum 0.1; Adam 1e-3, batch 32, no "
    "weight decay. "
)
TWEETS = (
    STATES
    + "Sentiment140 in --data-dir, one tweet in five for the test; words that occur five times or more, 40 "
    "a tweet; the embedding "
    "of 200 is frozen. Epochs, split and tokenizer are ours, the study's are not printed."
)

WHOLE, SMALL = 1_280_000, 20_000  # tweets to train on, of all 1,600,000 and of 25,000
SMALLER = " A smaller set: 25,000 tweets of the 1,600,000, half of either polarity."
# enough tweets that training everything is told from BatchNorm only
MINUTES = {"limit_train": 20_000, "limit_test": 5_000, "epochs": 2}
GLOVE_25 = {"vectors": "glove.twitter.27B.25d.top12k.txt", "embedding": 25}


def printed(value: float) -> tuple[Figure, ...]:
    """Return one printed figure in percent, as a line takes it."""
    return (Figure(value, "printed"),)


PRESETS = (
    Preset(
        "torri-mlp",
        "An MLP on CIFAR-10",
        SOURCE,
        STATES
        + (
            "His 'BatchNorm only' trains the output layer too. The epochs are ours, the study's are not "
            "printed; no augmentation."
        ),
        (
            Line("all", {**MLP, "train": "all"}, printed(54.0)),
            Line("bn+output", {**MLP, "train": "bn+output"}, printed(45.0)),
            Line("bn", {**MLP, "train": "bn"}),
        ),
        Quick(("all", "bn+output"), {"limit_train": 2_000, "limit_test": 1_000, "epochs": 2}),
    ),
    Preset(
        "torri-lstm",
        "An LSTM on tweets, its embedding random",
        SOURCE,
        TWEETS,
        (
            Line("all", {**LSTM, "train": "all"}, printed(78.0)),
            Line("bn", {**LSTM, "train": "bn"}, printed(67.0)),
        ),
        Quick(("all", "bn"), MINUTES),
        examples=WHOLE,
    ),
    Preset(
        "torri-lstm-glove",
        "An LSTM on tweets, its embedding GloVe's",
        SOURCE,
        TWEETS
        + (
            " Word vectors: glove.twitter.27B.200d.txt in the working directory; others by -- --vectors FILE "
            "--embedding WIDTH."
        ),
        tuple(
            Line(train, {**LSTM, "train": train, "vectors": "glove.twitter.27B.200d.txt"}, printed(value))
            for train, value in (("all", 78.0), ("bn", 74.0))
        ),
        Quick(("all", "bn"), MINUTES),
        examples=WHOLE,
    ),
    Preset(
        "torri-lstm-25k",
        "An LSTM on 25,000 tweets, its embedding random",
        SOURCE,
        TWEETS + SMALLER,
        (
            Line("all", {**LSTM, "train": "all"}, printed(78.0)),
            Line("bn", {**LSTM, "train": "bn"}, printed(67.0)),
        ),
        Quick(("all", "bn"), MINUTES),
        mark="smaller set",
        examples=SMALL,
    ),
    Preset(
        "torri-lstm-glove-25k",
        "An LSTM on 25,000 tweets, its embedding GloVe's of 25 dimensions",
        SOURCE,
        TWEETS
        + SMALLER
        + (
            " The vectors are the 25-dimensional ones of 11,925 frequent words; -- --vectors FILE says where "
            "they lie."
        ),
        tuple(
            Line(train, {**LSTM, **GLOVE_25, "train": train}, printed(value))
            for train, value in (("all", 78.0), ("bn", 74.0))
        ),
        Quick(("all", "bn"), MINUTES),
        mark="smaller set",
        examples=SMALL,
    ),
    Preset(
        "torri-lstm-25k-why",
        "What holds BatchNorm only back on 25,000 tweets: the steps, the learning rate, or the output layer",
        "a question of Torri's study",
        TWEETS + SMALLER,
        (
            Line("bn 50 epochs", {**LSTM, "train": "bn", "epochs": 50}),
            Line("bn lr 0.01", {**LSTM, "train": "bn", "lr": 0.01}),
            Line("bn+output", {**LSTM, "train": "bn+output"}),
            Line("glove bn lr 0.01", {**LSTM, **GLOVE_25, "train": "bn", "lr": 0.01}),
        ),
        Quick(("bn lr 0.01", "bn+output"), MINUTES),
        seeds=1,
        mark="smaller set",
        examples=SMALL,
    ),
)
