"""The messages of a run about the ranks that share it."""

from __future__ import annotations

from fastbn.recipe import ResolvedRecipe
from fastbn.training.distributed.exchange import message_bytes
from fastbn.training.distributed.ranks import Ranks


def described(recipe: ResolvedRecipe, parameters: int, ranks: Ranks) -> str:
    """Return what a run says of its ranks."""
    per_rank, statistics = (
        recipe.batch_size // ranks.count,
        "all ranks' together" if recipe.sync_bn else "each rank's own",
    )
    sent = f"{message_bytes(parameters):,} bytes an all-reduce over {ranks.backend}"
    return (
        f"ranks     {ranks.count}, {per_rank} images of each batch a rank, BatchNorm's statistics "
        f"{statistics}, {sent}"
    )


def other_ranks(recipe: ResolvedRecipe, before: int | None, ranks: Ranks) -> str:
    """Return what to say where another number of ranks than `before` goes on with a run, which may: with
    --sync-bn it is the same run. before: None, where no run goes on."""
    if before in (None, ranks.count) or recipe.sync_bn:
        return ""
    share = recipe.batch_size // ranks.count
    return (
        f", saved by {before} ranks and continued by {ranks.count}: BatchNorm's statistics are now of "
        f"{share} images"
    )
