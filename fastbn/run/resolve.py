"""What a run's settings leave open, found out: the data set, the engine, the device, the batch size."""

from __future__ import annotations

import dataclasses
import os

import torch

from fastbn import devices
from fastbn.config import Config
from fastbn.data.datasets import Loaded, load
from fastbn.data.feed import feed
from fastbn.data.images import Images
from fastbn.data.names import DEFAULT_DIR, IMAGE_SIZE, USUAL
from fastbn.engine.triton.self_check import SWITCH
from fastbn.errors import UsageError
from fastbn.models.network import Network
from fastbn.planning import precision
from fastbn.run.build import engine_of, spec_of
from fastbn.training.batch_size import fastest
from fastbn.training.distributed.ranks import ALONE, Ranks
from fastbn.training.progress import Progress


def implied(config: Config) -> Config:
    """ImageNet asks for that family of networks: 50 layers are both."""
    family = config.family or ("imagenet" if config.dataset == "imagenet" else None)
    return dataclasses.replace(config, family=family)


def data(config: Config, may_download: bool = True) -> Loaded:
    size = IMAGE_SIZE.get(spec_of(config).family, 32)
    # the one folder that is downloaded into without being asked
    default_dir = DEFAULT_DIR if may_download else None
    download = config.download and may_download
    return _limited(
        load(config.dataset, config.data_dir, download, size, default_dir, config.rank_timeout), config
    )


def _limited(loaded: Loaded, config: Config) -> Loaded:
    train, test = loaded.train.limit(config.limit_train), loaded.test.limit(config.limit_test)
    if config.augment is not None or config.pixels != "standard":
        if not (isinstance(train, Images) and isinstance(test, Images)):
            raise UsageError(
                f"--augment and --pixels are of images in memory, and {train.name} is not that; leave them "
                "out"
            )
        train, test = (images.prepared(config.augment, config.pixels) for images in (train, test))
    return dataclasses.replace(loaded, train=train, test=test)


def resolved(config: Config, loaded: Loaded) -> tuple[Config, str]:
    """Nothing left open; and why this engine."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.no_self_check:
        os.environ[SWITCH] = "0"  # ranks and decoders inherit it
    device = devices.choose_device(config.device)
    spec = spec_of(config)
    engine, why = engine_of(config, device)
    if config.sync_bn and engine in ("triton", "stock"):
        raise UsageError(
            f"--sync-bn is the reference and the native engine's, this run's is {engine} ({why}); leave it "
            "out"
        )
    config = config.resolved(
        loaded.train.default_epochs, precision.automatic(engine, device), USUAL.get(loaded.name, {})
    )
    config = dataclasses.replace(
        config,
        depth=spec.depth,
        family=spec.family,
        conv_bias=spec.conv_bias,
        width=spec.width,
        dataset=loaded.name,
        engine=engine,
        device=device.type,
        threads=torch.get_num_threads(),
    )
    return config, why


def sized(config: Config, loaded: Loaded, model: Network, ranks: Ranks = ALONE) -> Config:
    """The config with the batch size that --batch-size auto finds, and what follows from it."""
    if config.batch_size != "auto":
        return config
    if ranks.count > 1:
        raise UsageError(
            f"--batch-size auto is measured by one process, and this is one of {ranks.count} ranks; give a "
            "number"
        )
    speak = Progress(config.epochs or 0, True).say
    found = fastest(model, feed(loaded.train, torch.device(config.device)), config.recipe(), speak)
    return config.with_batch(found, USUAL.get(loaded.name, {}))
