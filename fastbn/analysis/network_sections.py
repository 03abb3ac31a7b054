"""The report's sections that need a network's own passes over its test set: dead features, what features
see, pruning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastbn.analysis.features import feature_maps, filters
from fastbn.analysis.firing import Firing, exciting, firing
from fastbn.analysis.run_sections import ROWS
from fastbn.analysis.subject import Subject, spread_out
from fastbn.analysis.thresholds import Cut, by_threshold
from fastbn.data.augment import batch
from fastbn.data.images import Images
from fastbn.engine.fuse import fused_forward
from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.page import pictures
from fastbn.page.charts import Series, lines
from fastbn.page.page import ABSENT, Html, figure, figures, heading, joined, paragraph, section, table
from fastbn.page.scales import number

COLUMNS = 8  # of a picture: channels, filters, images
IMAGES = 4


def dead(subjects: Sequence[Subject], tests: Sequence[Images]) -> Html:
    """Return the section of the ReLUs that never fire, and of those that always do."""
    fired = [firing(s.model, test, _engine(s)) for s, test in zip(subjects, tests, strict=True)]
    whole = []
    for s, layers, test in zip(subjects, fired, tests, strict=True):
        channels = sum(len(f.fired) for f in layers)
        never, always = (sum(round(share(f) * len(f.fired)) for f in layers) for share in (_dead, _always))
        counts = [cell for count in (never, always) for cell in (f"{count:,}", f"{count / channels:.4f}")]
        whole.append([s.name, f"{channels:,}", *counts, f"{len(test):,}"])
    drawn = []
    for title, share in (
        ("ReLUs that never fire, by layer", _dead),
        ("ReLUs that always fire, by layer", _always),
    ):
        series = [
            Series(s.name, [*enumerate(map(share, layers), 1)], s.kind, i, marked=len(layers) <= ROWS)
            for i, (s, layers) in enumerate(zip(subjects, fired, strict=True))
        ]
        drawn.append(
            figure(lines(title, series, "ReLU, from the first to the last", "share of its channels"), title)
        )
    said = (
        "A channel is dead where its ReLU is 0 for every test image at every place, always on where it "
        "never is: a constant, or linear."
    )
    header = ["run", "channels", "dead", "share", "always on", "share", "images"]
    return section("Dead features", paragraph(said), table(header, whole), figures(drawn))


def _dead(layer: Firing) -> float:
    return layer.dead


def _always(layer: Firing) -> float:
    return layer.always


def features(subjects: Sequence[Subject], tests: Sequence[Images], layer: str | None) -> Html:
    """Return the section of first-layer filters, feature maps of a layer, the images that excite it most."""
    first = [_filters(s) for s in subjects]
    maps = [_maps(s, test, layer or s.affine.names[0]) for s, test in zip(subjects, tests, strict=True)]
    most = [_exciting(s, test, layer or _last(s, test)) for s, test in zip(subjects, tests, strict=True)]
    return section(
        "What the features see",
        heading("First layer"), figures(first), heading("Feature maps"), figures(maps),
        heading("Most exciting images"), figures(most),
    )  # fmt: skip


def _filters(s: Subject) -> Html:
    kernels = filters(s.model)
    each = kernels.weight / kernels.weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    scaled = kernels.weight * kernels.scale[:, None, None, None]
    common = scaled / scaled.abs().max().clamp(min=1e-12)
    shown = [("each by its own largest weight", each), ("as γ weighs them, all by the largest", common)]
    rows = [
        (
            name,
            pictures.picture(
                pictures.grid(_signed(w), COLUMNS), f"{len(w)} filters of {kernels.name}, {name}"
            ),
        )
        for name, w in shown
    ]
    return figure(
        pictures.rows(rows),
        f"{s.name}: {kernels.name}",
        "Grey is 0, red, green and blue are the weights of the image's channels.",
    )


def _maps(s: Subject, test: Images, layer: str) -> Html:
    x = batch(test, torch.arange(min(IMAGES, len(test))), None)
    activations = feature_maps(s.model, x, layer)
    chosen = spread_out(activations.raw.shape[1], COLUMNS)
    raw, normalised = activations.raw[:, chosen], activations.normalised[:, chosen]
    low, high = raw.amin((0, 2, 3), keepdim=True), raw.amax((0, 2, 3), keepdim=True)
    stretched = (raw - low) / (high - low).clamp(min=1e-12) * 2 - 1
    common = normalised / normalised.abs().max().clamp(min=1e-12)
    shown = [
        ("raw, each channel from its least to its most", stretched),
        ("after γ and β, all alike, grey is 0", common),
    ]
    rows = []
    for name, values in shown:
        grey = _signed(values.flatten(0, 1)[:, None].expand(-1, 3, -1, -1))
        maps = grey.reshape(len(x), len(chosen), *grey.shape[1:])
        beside = np.concatenate([_resized(test.images[: len(x)].numpy(), grey.shape[1:3])[:, None], maps], 1)
        drawn = pictures.grid(beside.reshape(-1, *grey.shape[1:]), len(chosen) + 1)
        rows.append(
            (
                name,
                pictures.picture(
                    drawn, f"{len(x)} test images and {len(chosen)} channels of {layer}, {name}"
                ),
            )
        )
    caption = f"A row an image, then {len(chosen)} of {activations.raw.shape[1]} channels."
    return figure(pictures.rows(rows), f"{s.name}: {layer}", caption)


def _resized(images: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize (n, H, W, 3) to (n, *size, 3), by the nearest pixel."""
    rows, columns = (np.arange(to) * have // to for to, have in zip(size, images.shape[1:3], strict=True))
    return images[:, rows][:, :, columns]


def _exciting(s: Subject, test: Images, layer: str) -> Html:
    excited = exciting(s.model, test, layer, COLUMNS, _engine(s))
    alive = [c for c in range(len(excited.values)) if excited.values[c, 0] > 0]
    if not alive:
        return paragraph(f"{s.name}: no channel of {layer} fires for any test image.")
    chosen = [alive[i] for i in spread_out(len(alive), COLUMNS)]
    shown = test.images[excited.indices[chosen].flatten()].numpy()
    names = ", ".join(f"{c} ({number(excited.values[c, 0].item())})" for c in chosen)
    fire = f"{len(alive)} of {len(excited.values)} fire"
    caption = (
        f"A row a channel, the most exciting image first: {names}, in brackets the largest "
        f"activation. {fire}."
    )
    drawn = pictures.picture(
        pictures.grid(shown, excited.indices.shape[1]),
        f"the images that excite {len(chosen)} channels of {layer} most",
    )
    return figure(drawn, f"{s.name}: {layer}", caption)


def _last(s: Subject, test: Images) -> str:
    """Return the BatchNorm before the last ReLU."""
    return firing(s.model, test.take([0]), _engine(s))[-1].name


def _signed(values: Tensor) -> np.ndarray:
    """Turn (n, 3, H, W) in −1 … 1 into (n, H, W, 3) uint8, 0 in the middle."""
    return ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def pruning(subjects: Sequence[Subject], tests: Sequence[Images], thresholds: Sequence[float]) -> Html:
    """Return the section of accuracy, size and speed by threshold, of the networks that can be pruned."""
    parts, cuts, cut_ones = [], [], []
    for s, test in zip(subjects, tests, strict=True):
        if not isinstance(s.model, FastBNOnlyResNet):
            parts.append(
                paragraph(f"{s.name}: {s.run.network} is no ResNet, whose structure pruning knows.", "note")
            )
            continue
        rows = by_threshold(s.model, test, thresholds)
        cuts.append(rows)
        cut_ones.append(s)
        parts.append(
            joined(
                [
                    heading(f"{s.name}, {len(test):,} test images"),
                    table(HEADER, [_row(cut, rows[0]) for cut in rows]),
                ]
            )
        )
    drawn = []
    for title, y_label, value in (
        ("Accuracy by threshold", "accuracy on the test set", lambda cut, whole: cut.accuracy),
        (
            "FLOPs left by threshold",
            "share of the whole network's FLOPs",
            lambda cut, whole: cut.flops / whole.flops,
        ),
        ("Speed by threshold", "times the whole network's", lambda cut, whole: cut.speed_up),
    ):
        series = [
            Series(s.name, [(cut.threshold or 0.0, value(cut, rows[0])) for cut in rows], s.kind, i)
            for i, (s, rows) in enumerate(zip(cut_ones, cuts, strict=True))
        ]
        drawn.append(figure(lines(title, series, "threshold of |γ|", y_label), title))
    said = (
        "γ with |γ| under the threshold are set to 0, and the channels that this makes constant are taken "
        "out: the outputs stay, the "
        "network is smaller. Both run stock, each in its faster memory layout, in turn on this machine; a "
        "library's kernels are often "
        "made for multiples of 8 or 16 channels, so fewer FLOPs need not be less time."
    )
    return section("Pruning", paragraph(said), figures(drawn), *parts)


HEADER = [
    "threshold",
    "γ at 0",
    "accuracy",
    "change",
    "parameters",
    "left",
    "MFLOP an image",
    "left",
    "µs an image",
    "speed",
]


def _row(cut: Cut, whole: Cut) -> list[str]:
    return [
        "none" if cut.threshold is None else f"{cut.threshold:g}",
        f"{cut.zeroed:.4f}",
        f"{cut.accuracy:.4f}",
        ABSENT if cut is whole else f"{cut.accuracy - whole.accuracy:+.4f}",
        f"{cut.parameters:,}",
        f"{100 * cut.parameters / whole.parameters:.1f} %",
        number(cut.flops / 1e6),
        f"{100 * cut.flops / whole.flops:.1f} %",
        number(cut.seconds * 1e6),
        f"{cut.speed_up:.2f}×",
    ]


def _engine(s: Subject) -> str:
    """Return the engine that watches: the run's own choice was made for training, where a network that trains
    its convolutions has none."""
    fused = fused_forward(s.model)
    return fused.engine if fused else "auto"
