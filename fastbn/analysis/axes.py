"""The report's figures as matplotlib Axes: each draws the arrays of the function that it names, into `ax` or
a figure of its own.

    axes.histogram({"BN only": model, "all": other}, "gamma").figure.savefig("gamma.pdf")

All raise MachineError where matplotlib is not installed (pip install 'fastbn[analysis]'), and what their
arrays' functions raise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastbn.analysis import affine as values
from fastbn.analysis.curves import curves as curves_of
from fastbn.analysis.features import feature_maps as maps_of
from fastbn.analysis.features import filters as filters_of
from fastbn.analysis.firing import Firing
from fastbn.analysis.firing import exciting as exciting_of
from fastbn.analysis.runs import FinishedRun
from fastbn.analysis.thresholds import Cut, arrays
from fastbn.data.images import Images
from fastbn.errors import MachineError
from fastbn.training.affine_statistics import SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Models = Mapping[str, nn.Module]


def histogram(models: Models, which: str = "gamma", bins: int = 40, ax: Axes | None = None) -> Axes:
    """Draw γ or β ("beta") of all layers, as shares of the channels: `affine.histogram`."""
    by_name = {name: values.affine(model) for name, model in models.items()}
    at = values.edges(list(by_name.values()), which, bins)
    ax = _axes(ax)
    for name, values_of in by_name.items():
        ax.stairs(values.histogram(values_of, which, at).shares, at, label=name)
    return _named(ax, which, "share of the channels")


def small(models: Models, threshold: float = SMALL, ax: Axes | None = None) -> Axes:
    """Draw the share of |γ| < threshold by layer: `affine.small`."""
    ax = _axes(ax)
    for name, model in models.items():
        shares = values.small(values.affine(model), threshold)
        ax.plot(np.arange(1, len(shares) + 1), shares, marker="o", label=name)
    return _named(ax, "BatchNorm, from the first to the last", f"share of |γ| < {threshold:g}")


def course(
    histories: Mapping[str, Sequence[dict[str, Any]]], what: str = "gamma_mean", ax: Axes | None = None
) -> Axes:
    """Draw a statistic over training, a line per layer, a colour per history: `affine.course`."""
    ax = _axes(ax)
    for i, (name, lines) in enumerate(histories.items()):
        by_layer = values.course(lines, what)
        drawn = ax.plot(np.arange(1, len(by_layer) + 1), by_layer, color=f"C{i}", alpha=0.5)
        drawn[0].set_label(name)
    return _named(ax, "epochs", what.replace("_", " "))


def firing(networks: Mapping[str, Sequence[Firing]], what: str = "dead", ax: Axes | None = None) -> Axes:
    """Draw the share of channels that never ("dead") or always ("always") fire by layer, of what `firing`
    found."""
    ax = _axes(ax)
    for name, layers in networks.items():
        ax.plot(np.arange(1, len(layers) + 1), [getattr(one, what) for one in layers], marker="o", label=name)
    return _named(ax, "ReLU, from the first to the last", f"share of its channels: {what}")


def curves(
    runs: Sequence[FinishedRun],
    metric: str = "test_accuracy",
    against: str = "epochs",
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric against epochs, seconds or joules, mean ± standard deviation over seeds:
    `curves.curves`."""
    ax = _axes(ax)
    for curve in curves_of(runs, metric):
        x = curve.against(against)
        if x is not None:
            drawn = ax.plot(x, curve.mean, marker="o", label=curve.name)
            ax.fill_between(
                x, curve.mean - curve.std, curve.mean + curve.std, color=drawn[0].get_color(), alpha=0.2
            )
    return _named(ax, against, metric.replace("_", " "))


def pruning(networks: Mapping[str, Sequence[Cut]], what: str = "accuracy", ax: Axes | None = None) -> Axes:
    """Draw a column of the table by threshold (accuracy, parameters, flops, seconds, speed_up):
    `thresholds.arrays`."""
    ax = _axes(ax)
    for name, cuts in networks.items():
        table = arrays(cuts)
        ax.plot(table["threshold"], table[what], marker="o", label=name)
    return _named(ax, "threshold of |γ|", what.replace("_", " "))


def filters(model: nn.Module, columns: int = 8, ax: Axes | None = None) -> Axes:
    """Draw the first layer's filters, each by its own largest weight: `features.filters`."""
    weight = filters_of(model).weight
    return _pictures(weight / weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12), columns, ax)


def feature_maps(
    model: nn.Module,
    images: Tensor,
    norm: str,
    columns: int = 8,
    normalised: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw a layer's first channels, a row per image, by the largest value: `features.feature_maps`, after γ
    and β or raw."""
    maps = maps_of(model, images, norm)
    shown = (maps.normalised if normalised else maps.raw)[:, :columns]
    grey = (shown / shown.abs().max().clamp(min=1e-12)).flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
    return _pictures(grey, shown.shape[1], ax)


def exciting(
    model: nn.Module,
    images: Images,
    layer: str,
    channels: Sequence[int],
    count: int = 8,
    ax: Axes | None = None,
) -> Axes:
    """Draw the images that excite these channels most, a row per channel: `firing.exciting`."""
    indices = exciting_of(model, images, layer, count).indices[list(channels)]
    shown = images.images.cpu()[indices.flatten()].permute(0, 3, 1, 2).float() / 127.5 - 1
    return _pictures(shown, indices.shape[1], ax)


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MachineError(f"Axes need matplotlib ({error}); pip install 'fastbn[analysis]'") from error
    return Figure(layout="constrained").add_subplot()  # of no window system


def _named(ax: Axes, x: str, y: str) -> Axes:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if ax.get_legend_handles_labels()[0]:
        ax.legend()
    return ax


def _pictures(values: Tensor, columns: int, ax: Axes | None) -> Axes:
    """Return (n, 3, H, W) in −1 … 1 in rows, one pixel of white between."""
    n, _, height, width = values.shape
    rows = -(-n // columns)
    whole = torch.ones(rows * columns, 3, height + 1, width + 1)
    whole[:n, :, :height, :width] = (values.float() + 1) / 2
    tiles = whole.view(rows, columns, 3, height + 1, width + 1).permute(0, 3, 1, 4, 2)
    drawn = tiles.reshape(rows * (height + 1), columns * (width + 1), 3)
    ax = _axes(ax)
    ax.imshow(drawn[:-1, :-1].numpy().clip(0, 1), interpolation="nearest")
    ax.set_axis_off()
    return ax
