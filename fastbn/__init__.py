"""fastbn trains BatchNorm and only BatchNorm, fast.

    model = fastbn.FastBNOnlyResNet(depth=866)           # images (N, 3, H, W) -> logits; only γ and β train
    history = fastbn.fit(model, train, test, epochs=10)  # fastbn.Images, or a DataLoader; a dict per epoch
    fastbn.evaluate(model, test)["accuracy"]             # and fastbn.predict(model, images): logits
    fastbn.fuse(fastbn.freeze(any_network))              # the same engine for a network of yours
    print(fastbn.explain(model))
    smaller = fastbn.prune(model, 0.01)                  # without channels that |γ| < 0.01 makes constant

Names are handed on lazily, so that the command line's help does not pay for torch's import.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from fastbn import advice, training
from fastbn.experiments import registry
from fastbn.version import VERSION

if TYPE_CHECKING:
    from fastbn import adapt
    from fastbn.analysis.pruning import prune
    from fastbn.data.images import Images
    from fastbn.engine.fuse import fuse
    from fastbn.models.export import fold_bn, to_exported, to_onnx, to_torch
    from fastbn.models.resnet import FastBNOnlyResNet
    from fastbn.patches.apply import apply_patch, save
    from fastbn.patches.merge import merge_patches
    from fastbn.patches.summary import diff_patches, inspect
    from fastbn.patches.switch import Patches
    from fastbn.planning.explain import explain
    from fastbn.trainable import freeze
    from fastbn.training.checkpoint import load
    from fastbn.training.fit import fit
    from fastbn.training.prediction import evaluate, predict
    from fastbn.training.replicas import fit_replicas

if sys.platform == "win32":  # no file locks, no fork
    raise ImportError("fastbn runs on Linux and macOS, and this is Windows; install it inside WSL 2")
registry.register()
advice.FIRST_STEP[:] = ["fastbn.planning.gain:advise"]
training.KEEPER[:] = ["fastbn.run.library:keep"]
__version__ = VERSION
__all__ = [
    "FastBNOnlyResNet",
    "Images",
    "Patches",
    "adapt",
    "apply_patch",
    "diff_patches",
    "evaluate",
    "explain",
    "fit",
    "fit_replicas",
    "fold_bn",
    "freeze",
    "fuse",
    "inspect",
    "load",
    "merge_patches",
    "predict",
    "prune",
    "save",
    "to_exported",
    "to_onnx",
    "to_torch",
]

_HOME = {
    "FastBNOnlyResNet": "models.resnet",
    "Images": "data.images",
    "Patches": "patches.switch",
    "adapt": "adapt",
    "apply_patch": "patches.apply",
    "diff_patches": "patches.summary",
    "evaluate": "evaluate",
    "explain": "planning.explain",
    "fit": "training.fit",
    "fit_replicas": "training.replicas",
    "fold_bn": "models.export",
    "freeze": "trainable",
    "fuse": "engine",
    "inspect": "patches.summary",
    "load": "training.checkpoint",
    "merge_patches": "patches.merge",
    "predict": "training.prediction",
    "prune": "analysis.pruning",
    "save": "patches.apply",
    "to_exported": "models.export",
    "to_onnx": "models.export",
    "to_torch": "models.export",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOME[name]}")
    return home if name == _HOME[name] else getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
