"""Parts of networks, each with something that a trace would change the meaning of."""

import random

import torch
import torch.nn.functional as F
from nets import frozen_convolutions
from torch import nn

from bench.oracle.stock import assert_same, fused, run, stock, tolerance

EXACT = tolerance(torch.float64)


class Part(nn.Module):
    """convolution -> BatchNorm -> ReLU; a forward is the test's own."""

    def __init__(self, inside=4, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inside, 4, 3, padding=1), norm(4)

    def body(self, x):
        return F.relu(self.bn(self.conv(x)))

    def forward(self, x):
        return self.body(x)


class Whole(nn.Module):
    """A part that is fused, the one under test, and another that is fused."""

    def __init__(self, part):
        super().__init__()
        self.first, self.part, self.last = Part(3), part, Part()

    def forward(self, x):
        return self.last(self.part(self.first(x)))


class NoGrad(Part):
    def forward(self, x):
        with torch.no_grad():
            return self.body(x)


class EnableGrad(Part):
    def forward(self, x):
        with torch.enable_grad():
            return self.body(x) * 1.0


class Inference(Part):
    def forward(self, x):
        with torch.inference_mode():
            gate = x.mean((2, 3), keepdim=True).sigmoid()
        return self.body(x) * gate.clone()


class Autocast(Part):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.body(x)


class Checkpoint(Part):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)


class Reentrant(Part):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=True)


class Hooked(Part):
    def forward(self, x):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t, lambda t: 2 * t if t.is_floating_point() and t.dim() > 3 else t
        ):
            return torch.sin(self.body(x))


class SetsMode(Part):
    def forward(self, x):
        x = self.body(x)
        torch.set_grad_enabled(False)
        y = x * 2.0
        torch.set_grad_enabled(True)
        return x + y


class Penalty(Part):
    def forward(self, x):
        x = self.body(x)
        self.penalty = x.square().mean()
        return x


class Caught(Part):
    """Python code that takes any error for an answer."""

    def forward(self, x):
        x = self.body(x)
        try:
            self.penalty = x.mean()
        except BaseException:
            return x * 0.0
        return x


class Decides(Part):
    def forward(self, x):
        return self.body(x) if x.mean() > -100 else x


class Generator(Part):
    def __init__(self):
        super().__init__()
        self.generator = random.Random(3)

    def forward(self, x):
        return self.body(x) * self.generator.random()


class Rolls(Part):
    def forward(self, x):
        return self.body(x) if random.random() < 0.5 else 2.0 * x


class ListOfModules(Part):
    """A module that is none of the submodules."""

    def __init__(self):
        super().__init__()
        self.hidden = [nn.BatchNorm2d(4).double()]

    def forward(self, x):
        return self.hidden[0](self.body(x))


class Buffer(Part):
    def __init__(self):
        super().__init__()
        self.register_buffer("ema", torch.ones(4, dtype=torch.float64))

    def forward(self, x):
        x = self.body(x)
        self.ema.lerp_(x.detach().mean((0, 2, 3)), 0.5)
        return x * self.ema.view(-1, 1, 1)


SEEN = {
    NoGrad: "the grad mode",
    Inference: "the inference mode",
    Autocast: "autocast on cpu",
    Checkpoint: "checkpoint",
    Reentrant: "CheckpointFunction",
    Hooked: "saved-tensor hooks",
    SetsMode: "the grad mode",
    Penalty: "sets self.penalty",
    Caught: "sets self.penalty",
    Decides: "control flow",
    Generator: "reads self.generator, a Random",
    Rolls: "random numbers",
    ListOfModules: "not among its submodules",
    Buffer: "writes to",
}


def net(part):
    return frozen_convolutions(part).double()


def both(model, *inputs, calls=3):
    """Three calls, fused and stock, from the same random numbers."""
    ours, theirs = fused(model), stock(model)
    for call in range(calls):
        random.seed(call)
        mine = run(ours, *inputs)
        random.seed(call)
        assert_same(mine, run(theirs, *inputs), EXACT)
    return ours, theirs
