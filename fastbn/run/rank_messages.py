"""What a run says of the ranks that share it."""

from __future__ import annotations

from fastbn.config import Config
from fastbn.training.distributed.exchange import message_bytes
from fastbn.training.distributed.ranks import Ranks


def described(config: Config, parameters: int, ranks: Ranks) -> str:
    """What a run says of its ranks."""
    own, statistics = (
        config.batch // ranks.count,
        "all ranks' together" if config.sync_bn else "each rank's own",
    )
    sent = f"{message_bytes(parameters):,} bytes an all-reduce over {ranks.backend}"
    return (
        f"ranks     {ranks.count}, {own} images of each batch a rank, BatchNorm's statistics "
        f"{statistics}, {sent}"
    )


def other_ranks(config: Config, before: int, ranks: Ranks) -> str:
    """What to say where another number of ranks goes on with a run, which may: with --sync-bn it is the
    same run."""
    if before == ranks.count or config.sync_bn:
        return ""
    own = config.batch // ranks.count
    return (
        f", saved by {before} ranks and continued by {ranks.count}: BatchNorm's statistics are now of "
        f"{own} images"
    )
