"""Network, the part that every network made from a Spec shares: its draw, its weights from a file, its
freezing and its engine."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastbn.engine.fuse import fuse
from fastbn.errors import UsageError
from fastbn.models.export import to_torch
from fastbn.models.families import HOMES, MOST_PARAMETERS, Spec
from fastbn.models.init import draw, load_weights
from fastbn.trainable import count, freeze


class Network(nn.Module):
    """A network of one family: a subclass makes its layers in `build` and says what follows what in
    `forward`; its head is `fc`.

    spec: everything it is made from. engine: what runs it, as in `fastbn.fuse`.
    weights: a .safetensors or .pth file with its state dict's keys, see `load_weights`.
    check: is called with the network before it takes memory, and may raise.

    Parameters are of torch's default dtype on its default device; on "meta" nothing is drawn. Only norms
    require grad (in a network without any, everything).
    Attributes: `spec`, `weights_file` and `weights_sha256` (None without a file).
    """

    def __init__(
        self,
        spec: Spec,
        engine: str = "auto",
        weights: str | os.PathLike[str] | None = None,
        check: Callable[[Network], None] | None = None,
    ):
        super().__init__()
        self.spec = spec
        self.weights_file = None if weights is None else os.fspath(weights)
        self.weights_sha256: str | None = None
        device = torch.get_default_device()
        with torch.device("meta"):  # there torch's own initialisers cost nothing and draw nothing
            self.build(spec)
        parameters = sum(p.numel() for p in self.parameters())
        if parameters > MOST_PARAMETERS:
            raise UsageError(
                f"{spec.title} of this width has {parameters:,} parameters, more than {MOST_PARAMETERS:,}; "
                "take a smaller one"
            )
        if check is not None:
            check(self)
        self.to_empty(device=device)
        draw(self, spec)
        if self.weights_file is not None:
            self.weights_sha256 = load_weights(self, self.weights_file)
        freeze(self, "all" if spec.norm == "selu" else "bn")
        fuse(self, engine, check=False)  # these forwards are known

    def build(self, spec: Spec) -> None:
        """Make the layers as attributes."""
        raise NotImplementedError

    def begin(self, study: Mapping[str, Any], train: Any) -> None:
        """Start from what a study's own settings name, before anything of this training set is read; a family
        without any has nothing to do. Raises UsageError for what can't be read."""

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def to_torch(self) -> fx.GraphModule:
        """Return the same network of torch's own modules alone, see `fastbn.models.export`."""
        return to_torch(self)

    def lines(self) -> list[str]:
        """Return the layers as a reader wants them: not their modules, of which 866 layers would print 1,900
        lines."""
        return []

    def __repr__(self) -> str:
        some, total = count(self)
        first = (
            ", ".join(f"{key}={value!r}" for key, value in self.spec.said().items())
            + f", weights={self.weights_file!r}"
        )
        lines = [*self.lines(), f"fc: {self.fc!r}", f"trainable: {some:,} of {total:,} parameters"]
        return f"{type(self).__name__}({first})" + "".join(f"\n  {line}" for line in lines)


def network(
    spec: Spec,
    engine: str = "auto",
    weights: str | os.PathLike[str] | None = None,
    check: Callable[[Network], None] | None = None,
) -> Network:
    """Return the network of a spec, of the class that its family names. check: as of `Network`."""
    kind: type[Network] = pkgutil.resolve_name(HOMES[spec.family])
    made = kind.__new__(kind)
    Network.__init__(made, spec, engine, weights, check)
    return made
