"""The network that a run's settings ask for, with what it starts from and what trains in it; and the
engine that runs it."""

from __future__ import annotations

import dataclasses

import torch

from fastbn.choices import TRAINS_CONVOLUTIONS, train_terms
from fastbn.data.feed import Feed
from fastbn.data.images import Images
from fastbn.engine.fuse import fuse
from fastbn.engine.select import choose
from fastbn.errors import UsageError
from fastbn.files import is_folder
from fastbn.models.families import NO_CONVOLUTIONS, OPTIONS, WORDS, Spec, resolve
from fastbn.models.load_weights import put
from fastbn.models.network import Network, network
from fastbn.planning.precision import storage
from fastbn.run.settings import ResolvedRun
from fastbn.settings.config import Config
from fastbn.trainable import freeze
from fastbn.training.checkpoint import load


def spec_of(config: Config, classes: int = 10, vocabulary: int = 0) -> Spec:
    """Return the network's Spec for this many classes and, where it reads words, known words. ImageNet asks
    for its own family: 50 layers are two. Raises UsageError for a depth that is none, and the like."""
    fields = {field.name for field in dataclasses.fields(Spec)}
    spec = resolve(
        config.depth,
        classes,
        config.width,
        config.family or ("imagenet" if config.dataset == "imagenet" else None),
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
        **{name: value for name, value in config.study if name in fields},
    )
    for family, options in OPTIONS.items():
        if family != spec.family and (given := [name for name, _ in config.study if name in options]):
            raise UsageError(
                f"--{given[0]} is no setting of family {spec.family}; it is for --family {family}"
            )
    return spec


def vocabulary_of(train: Feed | Images) -> tuple[str, ...]:
    """Return the words that a training set of text knows; none of images."""
    return getattr(train, "vocabulary", ())


def network_of(run: ResolvedRun, train: Feed | Images) -> Network:
    """Return the network for this training set, on the run's device, frozen but for what trains, fused."""
    spec, asked = run.spec, run.asked
    if bool(vocabulary_of(train)) != (spec.family in WORDS):
        reads, holds = ("words", "images") if spec.family in WORDS else ("images", "words")
        raise UsageError(
            f"family {spec.family} reads {reads}, and {train.name} holds {holds}; {', '.join(WORDS)} is for "
            "tweets, the others for images"
        )
    folder = asked.weights if asked.weights is not None and is_folder(asked.weights) else None
    model = network(spec, "stock", asked.weights if folder is None else None)
    model.begin(dict(asked.study), train)
    if folder is not None:
        put(model, load(folder, "stock").state_dict(), folder)
    freeze(model, asked.train, asked.seed)
    model.to(run.device)
    fuse(model, run.engine, asked.exact_conv, check=False)
    return model


def engine_of(config: Config, family: str, device: torch.device) -> tuple[str, str]:
    """Return the engine's name, and why it is that one. Raises UsageError for an engine that can't run
    this."""
    why = _why_stock(config, family)
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


def _why_stock(config: Config, family: str) -> str | None:
    """Return why nothing of this run could be fused, if so."""
    trains = {term.name for term in train_terms(config.train)}
    if family in NO_CONVOLUTIONS:
        return "there are no convolutions"
    if config.norm != "batch":
        return f"no BatchNorm follows the convolutions: --norm {config.norm}"
    if trains & TRAINS_CONVOLUTIONS:
        return f"convolutions train (--train {config.train})"
    return None
