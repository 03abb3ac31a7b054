"""Pruning by γ: set |γ| < t to 0, which makes a channel constant, then take the constant channels out of the
network.

With γ = 0 a BatchNorm says β, wherever and whatever the image. What reads that channel changes by a constant,
so it may go where

    β ≤ 0, a ReLU follows    the channel is 0: nothing is missed
    the reader pads nothing  Σ W·relu(β) comes off the mean of the reader's own BatchNorm, or onto the bias of
    fc
    the reader pads          its sum is smaller at the border, where zeros take the constant's place. All such
                             channels of an input together are kept as one that is 1 everywhere, read by Σ
                             W·relu(β): exact for every image size

A channel of the stream that additions join is taken out where every BatchNorm that feeds it has lost it;
where only some have, their convolutions no longer compute it, and the others' are added at their places. What
is exact with running statistics is exact with a batch's own too."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastbn.analysis.pruned import ChannelSource, PrunedResNet, Sum
from fastbn.engine.fuse import fuse
from fastbn.errors import UsageError
from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.training.affine_statistics import affine_norms

Unit = tuple[nn.Conv2d, nn.BatchNorm2d]


def masked(model: nn.Module, threshold: float) -> nn.Module:
    """Return a copy in which every γ of a BatchNorm2d with |γ| < threshold is exactly 0. Raises UsageError
    for a threshold that is not a number of at least 0, and for a network without such γ."""
    if not threshold >= 0:
        raise UsageError(f"threshold must be a number of at least 0, got {threshold!r}")
    pruned = copy.deepcopy(model)
    norms = affine_norms(pruned)
    if not norms:
        raise UsageError(
            f"{type(model).__name__} has no BatchNorm2d with γ and β: there is nothing to prune by"
        )
    with torch.no_grad():
        for _, norm in norms:
            norm.weight.mul_(norm.weight.abs() >= threshold)
    return pruned


def prune(model: FastBNOnlyResNet, threshold: float = 0.01) -> PrunedResNet:
    """Return the network without the channels that |γ| < threshold makes constant: smaller, plain, with the
    outputs of `masked` to rounding.

    Raises UsageError for a threshold that can't be, TypeError for a network of another kind (`masked` takes
    any)."""
    if not isinstance(model, FastBNOnlyResNet):
        raise TypeError(
            f"prune knows the structure of a FastBNOnlyResNet alone, got {type(model).__name__}; "
            "masked(model, t) takes any"
        )
    like = next(model.parameters())
    with torch.no_grad():
        pruned = _build(fuse(masked(model, threshold), "stock").cpu())
    return pruned.to(like.device, like.dtype).train(model.training)


@dataclasses.dataclass(frozen=True)
class ChannelFeed:
    """An activation of which only the channels `kept` (k,) are computed; the others are what `constant` (C,)
    float64 says.
    one: behind the kept channels comes one that is 1 everywhere."""

    kept: Tensor
    constant: Tensor
    one: bool

    @property
    def width(self) -> int:
        return len(self.kept) + self.one

    def lost(self, weight: Tensor) -> Tensor:
        """Return (O, 1, KH, KW): a weight (O, C, KH, KW) summed over the channels that are not kept, by what
        they are."""
        constant = self.constant.index_fill(0, self.kept, 0.0)
        return torch.einsum("ochw,c->ohw", weight.double(), constant)[:, None]

    def taken_by(self, readers: Iterable[nn.Conv2d]) -> ChannelFeed:
        """Return it with its channel of ones, if one of these pads and reads a constant, or if nothing else
        is left."""
        pads = any(conv.padding != (0, 0) and self.lost(conv.weight).any() for conv in readers)
        return dataclasses.replace(self, one=pads or not len(self.kept))


@dataclasses.dataclass(frozen=True)
class Joint:
    """The parts that one Sum is made of, before pruning."""

    branch: list[Unit]
    shortcut: list[Unit]  # a projection, or nothing
    identity: bool

    @property
    def ends(self) -> list[nn.BatchNorm2d]:
        """Return the BatchNorms that feed the stream here."""
        return [units[-1][1] for units in (self.branch, self.shortcut) if units]

    @property
    def readers(self) -> list[nn.Conv2d]:
        """Return the convolutions that read the stream as it was before."""
        return [units[0][0] for units in (self.branch, self.shortcut) if units]


def _joints(model: Any) -> list[Joint]:
    """Return the stem's joint and then each block's."""
    joints = [Joint([(model.conv1, model.bn1)], [], False)]
    for i in range(len(model.spec.blocks)):
        for block in model.get_submodule(f"layer{i + 1}"):
            units = [
                (getattr(block, f"conv{k}"), getattr(block, f"bn{k}"))
                for k in (1, 2, 3)
                if hasattr(block, f"conv{k}")
            ]
            projection = [] if block.downsample is None else [(block.downsample[0], block.downsample[1])]
            joints.append(Joint(units, projection, block.downsample is None))
    return joints


def _feeds(joints: list[Joint]) -> list[ChannelFeed]:
    """Return the stream after each joint. From one projection to the next it has the same channels: those
    that any BatchNorm feeds."""
    starts = [i for i, joint in enumerate(joints) if not joint.identity]
    stream: list[ChannelFeed] = []
    for start, end in zip(starts, [*starts[1:], len(joints)], strict=True):
        kept = (
            torch.stack([_alive(norm) for joint in joints[start:end] for norm in joint.ends])
            .any(0)
            .nonzero()
            .flatten()
        )
        constant = torch.zeros(joints[start].ends[0].num_features, dtype=torch.float64)
        stage = []
        for joint in joints[start:end]:
            constant = (constant + sum(norm.bias.double() for norm in joint.ends)).relu()
            stage.append(ChannelFeed(kept, constant, False))
        one = any(
            feed.taken_by(joint.readers).one
            for feed, joint in zip(stage, joints[start + 1 : end + 1], strict=False)
        ) or not len(kept)
        stream += [dataclasses.replace(feed, one=one) for feed in stage]
    return stream


def _build(model: Any) -> PrunedResNet:
    joints = _joints(model)
    feeds, before = _feeds(joints), ChannelFeed(torch.arange(3), torch.zeros(3, dtype=torch.float64), False)
    sums = []
    for joint, feed in zip(joints, feeds, strict=True):
        sums.append(_sum(joint, before, feed))
        before = feed
    rest = iter(sums[1:])
    stages = [[next(rest) for _ in range(blocks)] for blocks in model.spec.blocks]
    weight = model.fc.weight.double()
    fc = nn.Linear(before.width, len(weight), dtype=torch.float64)
    fc.weight.copy_(_columns(weight[:, :, None, None], before, False).flatten(1))
    fc.bias.copy_(model.fc.bias.double() + before.lost(weight[:, :, None, None]).flatten())
    fc.requires_grad_(model.fc.weight.requires_grad)
    return PrunedResNet(sums[0], getattr(model, "maxpool", None), stages, fc)


def _sum(joint: Joint, before: ChannelFeed, after: ChannelFeed) -> Sum:
    """Return a joint's Sum, between the stream before and after it."""
    constant = torch.zeros(len(after.constant), dtype=torch.float64)
    sources = []
    for units in (joint.branch, joint.shortcut):
        if units:
            norm = units[-1][1]
            constant += norm.bias.double() * ~_alive(norm)
            rows = _alive(norm).nonzero().flatten()
            if len(rows):
                places = torch.searchsorted(after.kept, rows)
                sources.append(
                    ChannelSource(_chain(units, before), None if len(rows) == after.width else places)
                )
    added = torch.cat(
        [constant[after.kept], torch.full((int(after.one),), float(not joint.identity), dtype=torch.float64)]
    )
    stride = math.prod(conv.stride[0] for conv, _ in joint.branch)
    return Sum(after.width, sources, joint.identity, added.view(1, -1, 1, 1) if added.any() else None, stride)


def _chain(units: list[Unit], feed: ChannelFeed) -> list[Unit]:
    """Return the same convolutions in a row, without what is constant before, between and after them."""
    chain = []
    for i, (conv, norm) in enumerate(units):
        kept = _alive(norm).nonzero().flatten()
        after = ChannelFeed(kept, norm.bias.double().relu(), False)
        if i + 1 < len(units):
            after = after.taken_by([units[i + 1][0]])
        chain.append(_unit(conv, norm, feed, after))
        feed = after
    return chain


def _unit(conv: nn.Conv2d, norm: nn.BatchNorm2d, before: ChannelFeed, after: ChannelFeed) -> Unit:
    """Return a convolution and its BatchNorm with the channels that are left on either side."""
    pads = conv.padding != (0, 0)
    weight = torch.zeros(after.width, before.width, *conv.kernel_size, dtype=torch.float64)
    weight[: len(after.kept)] = _columns(conv.weight.double(), before, pads)[after.kept]
    shape: dict[str, Any] = {"kernel_size": conv.kernel_size, "stride": conv.stride, "padding": conv.padding}
    new = nn.Conv2d(before.width, after.width, bias=False, dtype=torch.float64, **shape)
    new.weight.copy_(weight)
    pruned_norm = nn.BatchNorm2d(after.width, norm.eps, norm.momentum, dtype=torch.float64)
    lost = torch.zeros(norm.num_features, dtype=torch.float64) if pads else before.lost(conv.weight).flatten()
    assert norm.running_mean is not None and norm.running_var is not None
    for to, values, one in (
        (pruned_norm.weight, norm.weight, 0.0),  # the channel of ones: 0·x̂ + 1
        (pruned_norm.bias, norm.bias, 1.0),
        (pruned_norm.running_mean, norm.running_mean - lost - (0 if conv.bias is None else conv.bias), 0.0),
        (pruned_norm.running_var, norm.running_var, 1.0),
    ):
        assert to is not None
        to.copy_(
            torch.cat([values.double()[after.kept], torch.full((int(after.one),), one, dtype=torch.float64)])
        )
    new.requires_grad_(conv.weight.requires_grad)
    pruned_norm.requires_grad_(norm.weight.requires_grad)
    return new, pruned_norm


def _columns(weight: Tensor, before: ChannelFeed, pads: bool) -> Tensor:
    """Return a weight (O, C, KH, KW) with the input channels that are left; the one of ones is read by what
    was lost, or not at all."""
    ones = before.lost(weight) if pads else torch.zeros_like(weight[:, :1])
    return torch.cat([weight[:, before.kept], *([ones] if before.one else [])], 1)


def _alive(norm: nn.BatchNorm2d) -> Tensor:
    return norm.weight.detach() != 0
