"""Everything that trains, as one vector, for as long as training lasts: an update and a checkpoint are
then one operation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastbn.errors import UsageError
from fastbn.trainable import entries, trainable


class Flat:
    """The trainable parameters, in `named_parameters` order, as views of `vector` (n,); `gradient` (n,) holds
    what gather() found. `mask` (n,) bool is false where an entry of a trainable parameter does not train,
    None where all do."""

    def __init__(self, model: nn.Module):
        named = trainable(model)
        if not named:
            raise UsageError(
                f"nothing trains: no parameter of {type(model).__name__} requires grad; call "
                "fastbn.freeze(model, 'bn')"
            )
        kinds = {(p.dtype, p.device) for _, p in named}
        if len(kinds) > 1:
            raise UsageError(
                f"the trainable parameters must share one dtype and device, found {sorted(map(str, kinds))}"
            )
        self.parameters = [p for _, p in named]
        self.vector = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.gradient = torch.zeros_like(self.vector)
        self.mask: Tensor | None = None
        if masks := entries(model):
            self.mask = torch.cat(
                [masks.get(name, torch.ones_like(p, dtype=torch.bool)).reshape(-1) for name, p in named]
            )
        place = 0
        for p in self.parameters:
            view = self.vector[place : place + p.numel()].view(p.shape)
            place += p.numel()
            p.grad = None
            # by another dtype the parameter parts from its node in autograd: an earlier result that is still
            # held keeps that on the stream which it was made on, and a step that waits for it can't be
            # captured
            p.data = torch.empty(0, dtype=torch.complex64, device=p.device)
            p.data = view

    @torch.no_grad()
    def gather(self, add: bool = False) -> None:
        """Take the parameters' gradients into `gradient`, or add them to it, zero where there is none. A
        backward into parameters without a gradient hands its own tensors over; into views of one vector it
        would add each, a launch a parameter."""
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in self.parameters]
        if add:
            self.gradient += torch.cat(parts)
        else:
            torch.cat(parts, out=self.gradient)
        for p in self.parameters:
            p.grad = None

    def dissolve(self) -> None:
        """Give every parameter storage of its own again, and no gradient."""
        for p in self.parameters:
            p.data = p.data.clone()
            p.grad = None
