"""Random small networks built from a grammar of what people write in a forward: modes, attributes,
buffers, containers, outputs."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import random
import typing

import torch
import torch.nn.functional as F
from habit_blocks import HABITS, WIDTH, ChosenByASetting, ChosenByAttribute, Reversed
from torch import nn


class Named(typing.NamedTuple):
    out: torch.Tensor
    aux: torch.Tensor


@dataclasses.dataclass
class Data:
    out: torch.Tensor
    aux: typing.Any = None


class Ordered(collections.OrderedDict):
    def __getitem__(self, key):
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


FORMS = {
    "tensor": lambda out, aux: out,
    "tuple": lambda out, aux: (out, aux),
    "list": lambda out, aux: [out, {"aux": aux, "none": None}],
    "dict": lambda out, aux: {"out": out, "aux": aux, "n": 3},
    "ordered": lambda out, aux: Ordered(out=out, aux=aux),
    "named": Named,
    "data": lambda out, aux: Data(out, [aux]),
}


class Habits(nn.Module):
    """A stem, a few blocks of different habits, a head, a form of output; a mode around the whole, some
    seeds."""

    def __init__(self, seed: int):
        super().__init__()
        draw = random.Random(seed)
        self.stem, self.norm = nn.Conv2d(3, WIDTH, 3, bias=False), nn.BatchNorm2d(WIDTH)
        self.blocks = nn.ModuleList(
            [HABITS[name](draw) for name in draw.choices(sorted(HABITS), k=draw.randint(2, 4))]
        )
        self.head, self.form, self.skip = nn.Linear(WIDTH, 3), draw.choice(sorted(FORMS)), draw.random() < 0.3
        self.around = draw.choice(["", "", "", "", "no_grad", "enable_grad", "attribute"])

    def forward(self, x, *more, scale: float = 1.0, names=(), **options):
        out = F.relu(self.norm(self.stem(x)))
        with torch.no_grad() if self.around == "no_grad" else contextlib.nullcontext():
            for block in self.blocks:
                out = block(out) + out if self.skip else block(out)
        if self.around == "attribute":
            self.last = out
        for other in more:
            out = out + other
        aux = out.amax((2, 3))
        out = self.head(out.mean((2, 3))) * scale
        return FORMS[options.get("form", self.form)](out, aux)


def change(net: Habits, draw: random.Random) -> None:
    """Something that a user does between two calls."""
    blocks = list(net.modules())
    kind = draw.choice(["mode", "attribute", "freeze", "submodule", "part", "form"])
    if kind == "mode":
        net.train(not net.training)
    elif kind == "part":
        draw.choice(list(net.blocks)).train(draw.random() < 0.5)
    elif kind == "freeze":
        net.norm.weight.requires_grad_(not net.norm.weight.requires_grad)
    elif kind == "submodule":
        net.norm = nn.BatchNorm2d(WIDTH, momentum=0.5).double()
    elif kind == "form":
        net.form = draw.choice(sorted(FORMS))
    for block in blocks if kind == "attribute" else ():
        if isinstance(block, ChosenByAttribute):
            block.domain = 1 - block.domain
        if isinstance(block, ChosenByASetting):
            block.settings["scale"] += 0.5
            block.settings["names"].append("tanh")
        if isinstance(block, Reversed):
            block.by += 1.0


def arguments(draw: random.Random, x: torch.Tensor) -> tuple[tuple, dict]:
    args = (x, *[torch.ones(1, WIDTH, 1, 1, dtype=x.dtype)] * draw.choice([0, 0, 1, 2]))
    kwargs = {"scale": draw.choice([0.5, 2.0])} if draw.random() < 0.4 else {}
    return args, kwargs | ({"names": ["a"]} if draw.random() < 0.2 else {}) | (
        {"form": "dict"} if draw.random() < 0.2 else {}
    )
