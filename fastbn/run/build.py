"""The network that a run's settings ask for, with what it starts from and what trains in it; and the
engine that carries it out."""

from __future__ import annotations

import torch

from fastbn.choices import TRAINS_CONVOLUTIONS, train_terms
from fastbn.config import Config
from fastbn.data.feed import Feed
from fastbn.data.images import Images
from fastbn.engine.fuse import fuse
from fastbn.engine.select import choose
from fastbn.errors import UsageError
from fastbn.files import is_folder
from fastbn.models.families import Spec, resolve
from fastbn.models.load_weights import put
from fastbn.models.network import Network, network
from fastbn.planning.precision import storage
from fastbn.trainable import freeze
from fastbn.training.checkpoint import load

WITHOUT_CONVOLUTIONS = ("mlp", "lstm")


def spec_of(config: Config, classes: int = 10, vocabulary: int = 0) -> Spec:
    """The network's Spec. Raises UsageError for a depth that is none, and the like."""
    return resolve(
        config.depth,
        classes,
        config.width,
        config.family,
        config.seed,
        config.gamma_init,
        config.beta_init,
        config.weight_init,
        norm=config.norm,
        norm_eps=config.norm_eps,
        norm_momentum=config.norm_momentum,
        conv_bias=config.conv_bias,
        stride_on=config.stride_on,
        vocabulary=vocabulary,
        embedding=config.embedding,
    )


def network_of(config: Config, train: Feed | Images) -> Network:
    """The network for this training set, on the run's device, frozen but for what trains, fused."""
    vocabulary: tuple[str, ...] = getattr(train, "vocabulary", ())
    if bool(vocabulary) != (config.family == "lstm"):
        reads, holds = ("words", "images") if config.family == "lstm" else ("images", "words")
        raise UsageError(
            f"family {config.family} reads {reads}, and {train.name} holds {holds}; lstm is for tweets, the "
            "others for images"
        )
    if config.vectors is not None and config.family != "lstm":
        raise UsageError(
            f"--vectors starts an embedding, and family {config.family} has none; it is for --family lstm"
        )
    run = config.weights if config.weights is not None and is_folder(config.weights) else None
    model = network(
        spec_of(config, len(train.classes), len(vocabulary)), "stock", config.weights if run is None else None
    )
    if config.vectors is not None:
        model.use_vectors(config.vectors, vocabulary)  # type: ignore[operator]
    if run is not None:
        put(model, load(run, "stock").state_dict(), run)
    freeze(model, config.train, config.seed)
    model.to(config.device)
    fuse(model, config.engine, config.exact_conv, check=False)
    return model


def engine_of(config: Config, device: torch.device) -> tuple[str, str]:
    """The engine's name, and why it is that one."""
    why = _why_stock(config)
    if why is not None:
        if config.engine not in ("auto", "stock"):
            raise UsageError(
                f"--engine {config.engine} runs frozen convolutions with BatchNorm, and here {why}; use "
                "--engine stock"
            )
        return "stock", why
    engine, why = choose(config.engine, device, storage(config.precision)[0])
    name = engine.name if engine else "stock"
    if config.precision == "mixed" and name != "triton":
        raise UsageError(
            f"--precision mixed is the Triton engine's, and --engine {config.engine} means {name} here; use "
            "fp32 or bf16"
        )
    return name, why


def _why_stock(config: Config) -> str | None:
    """Why nothing of this run could be fused, if so."""
    trains = {term.name for term in train_terms(config.train)}
    if config.family in WITHOUT_CONVOLUTIONS:
        return "there are no convolutions"
    if config.norm != "batch":
        return f"no BatchNorm follows the convolutions: --norm {config.norm}"
    if trains & TRAINS_CONVOLUTIONS:
        return f"convolutions train (--train {config.train})"
    return None
