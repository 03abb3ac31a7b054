"""The families and data sets that one study alone needs, made known to the floors below. Imports no torch."""

from fastbn.cli.options import Option
from fastbn.data import names
from fastbn.models import families


def register() -> None:
    """Make every study's family and data set known; once, when fastbn is imported."""
    here = "fastbn.experiments"
    if "tweets" in names.READERS:
        return
    names.register("tweets", f"{here}.torri.tweets:read_tweets")
    families.register(
        "wandb",
        f"{here}.wandb.network:BottleneckNet",
        "bottleneck ResNet-20",
        depth=20,
        width=16,
        biased=True,
    )
    families.register(
        "mlp",
        f"{here}.torri.networks:MLP",
        "MLP",
        depth=4,
        width=1024,
        only_batch=True,
        convolutions=False,
    )
    families.register(
        "lstm",
        f"{here}.torri.networks:LSTM",
        "LSTM",
        depth=1,
        width=100,
        only_batch=True,
        convolutions=False,
        words=True,
        options={
            "embedding": Option(200, "of lstm: the numbers a word", int, group="network", advanced=True),
            "vectors": Option(
                None,
                "of lstm: a GloVe text file that the embedding starts from",
                metavar="FILE",
                group="network",
                advanced=True,
            ),
        },
    )
