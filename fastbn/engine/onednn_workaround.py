"""Keeps the stock path away from a weight gradient that oneDNN gets wrong.

On CPUs with AVX2 and without AVX-512 the weight gradient of a strided 1×1 convolution on channels-last
tensors with two to seven
input channels writes past its workspace: the process crashes or hangs, or the values are wrong (torch 2.13,
uxlfoundation/oneDNN#6035; grouped, 1-d and 3-d convolutions, other kernels and contiguous tensors are right).
Such a convolution is computed on contiguous tensors while its weight trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FORWARD = "_conv_forward"  # what nn.Conv2d.forward calls


class Contiguous:
    """The `_conv_forward` of one convolution, on contiguous tensors where a weight gradient will be taken
    on a CPU."""

    def __init__(self, conv: nn.Conv2d):
        self.conv = conv

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.device.type == "cpu" and weight.requires_grad and torch.is_grad_enabled():
            # a 1×1 weight is contiguous in either layout, and its strides say which one oneDNN takes
            x, weight = x.contiguous(), weight.flatten().view(weight.shape)
        return nn.Conv2d._conv_forward(self.conv, x, weight, bias)


def spare(model: nn.Module) -> None:
    """Give each convolution of the kind that oneDNN gets wrong its `Contiguous` forward; every other
    module is left as it is."""
    for module in model.modules():
        if _endangered(module):
            vars(module)[FORWARD] = Contiguous(module)  # type: ignore[arg-type]


def unspare(model: nn.Module) -> None:
    """Undo `spare`: no class of fastbn's is left in the modules."""
    for module in model.modules():
        if isinstance(vars(module).get(FORWARD), Contiguous):
            del vars(module)[FORWARD]


def _endangered(module: nn.Module) -> bool:
    if (
        not isinstance(module, nn.Conv2d)
        or type(module)._conv_forward is not nn.Conv2d._conv_forward
        or FORWARD in vars(module)
    ):
        return False
    return (
        module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.groups == 1
        and module.in_channels < 8
    )
