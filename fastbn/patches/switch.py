"""Patches: several patches of one network in one process, of which one is in at a time."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastbn.engine.module_state import addresses
from fastbn.errors import UsageError
from fastbn.files import shown
from fastbn.patches.apply import patch_for, placed
from fastbn.patches.contents import unwrapped
from fastbn.patches.serving import Serving

Vectors = dict[torch.dtype, Tensor]  # all that a patch changes, one flat vector a dtype


class Patches:
    """Several patches of one network in one process: `use` puts one in, `forward` serves them together.

    model: the base, plain or fused. Its parameters and buffers that patches change become views of one flat
        vector; everything else about it, and what was traced, packed or recorded of it, stays. `current` is
        the name of the patch that is in, None for the base.

    What is trained while a patch is in is lost at the next `use`: `fastbn.save` keeps it.

        patches = fastbn.Patches(fastbn.fuse(net.eval()))
        patches.add("flowers", "flowers.safetensors")
        patches.add("birds", "birds.safetensors")
        patches.use("flowers")
        with patches.use("birds"):
            logits = net(images)  # birds; after the block flowers again
        logits = patches.forward(images, ["birds", None, "flowers"])  # a task for each of three images
    """

    def __init__(self, model: nn.Module):
        self.model = unwrapped(model)
        self.current: str | None = None
        self._vectors: dict[str | None, Vectors] = {}  # by patch; of None the base's
        self._names: list[str] = []  # the tensors that the flat vectors hold
        self._slots: list[tuple[dict[str, Any], str]] = []  # where the modules hold them
        self._held: list[Tensor] = []
        self._views: list[tuple[torch.dtype, int, torch.Size]] = []
        self._flat: Vectors = {}
        self._addresses: tuple[int, ...] = ()
        self._serving = Serving(self)

    @property
    def names(self) -> list[str]:
        """Return the patches' names, in the order in which they were added."""
        return [name for name in self._vectors if name is not None]

    def add(self, name: str, path: str | os.PathLike[str], strict: bool = True) -> None:
        """Read a patch under a name; what is in stays in. Raises UsageError as `apply_patch`, and for a name
        that is taken."""
        if name in self._vectors or not isinstance(name, str):
            raise UsageError(f"a patch's name is a text that no other has, got {shown(repr(name), 80)}")
        patch = patch_for(self.model, path)
        with torch.inference_mode(False), self.use(None):
            try:
                values = placed(self.model, patch, strict)
            except UsageError as error:
                raise UsageError(f"{shown(path)}: {error}") from None
            if new := values.keys() - set(self._names):
                self._lay_out([*self._names, *sorted(new)])
            vectors = {dtype: vector.clone() for dtype, vector in self._vectors[None].items()}
            places = self.views(vectors)
            for key, value in values.items():
                places[key].copy_(value)
            self._vectors[name] = vectors
            self._serving.forget()

    def remove(self, name: str) -> None:
        """Forget a patch; where it is in, the base comes back. Raises UsageError for an unknown name."""
        self._known(name)
        if self.current == name:
            self.use(None)
        del self._vectors[name]
        self._serving.forget()

    def use(self, name: str | None) -> Switched:
        """Put a patch in, or with None the base, by one copy of a vector. As a context manager it brings
        back, at the block's end, what was in before. Raises UsageError for an unknown name."""
        if name is not None or self._vectors:
            self._known(name)
        before = self.current
        if self._vectors:
            self._hold()
            for dtype, vector in self._vectors[name].items():
                _copy(self._flat[dtype], vector)
            torch.autograd.graph.increment_version([t for t in self._held if not t.is_inference()])
        self.current = name
        return Switched(self, before)

    def forward(self, x: Tensor, tasks: Sequence[str | None]) -> Any:
        """Return the outputs of a batch each of whose samples has a patch of its own, in eval mode, without
        gradients.

        x: (N, …), the network's input. tasks: N names, None for the base.
        Returns what the network returns, each sample's as its own patch gives it, to rounding: where the
        engine can, every frozen convolution reads its weight once for all of the batch, and normalises each
        sample by its own scale and shift (`served` then says "together"); else the batch is sorted by task
        and run task by task, and `served` says why. Samples must not depend on each other in the network.

        Raises UsageError for an unknown name, for another number of tasks than samples, and in train mode."""
        for name in dict.fromkeys(tasks):
            if name is not None or self._vectors:
                self._known(name)
        return self._serving.forward(x, list(tasks))

    __call__ = forward

    @property
    def served(self) -> str:
        """Return how the last `forward` ran: "together", or "task by task: " and why."""
        return self._serving.how

    def __repr__(self) -> str:
        return f"Patches({type(self.model).__name__}, {self.names}, current={self.current!r})"

    def views(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return, by name, the tensors that lie in flat vectors."""
        each = zip(self._names, self._views, strict=True)
        return {
            name: vectors[dtype][start : start + shape.numel()].view(shape)
            for name, (dtype, start, shape) in each
        }

    def values(self, name: str | None) -> dict[str, Tensor]:
        """Return a patch's tensors by the network's names, views of its vectors."""
        return self.views(self._vectors[name])

    def _known(self, name: str | None) -> None:
        if name not in self._vectors:
            has = ", ".join(self.names) or "none"
            raise UsageError(f"no patch is called {shown(repr(name), 80)}; there are: {has}")

    def _hold(self) -> None:
        """Lay the tensors out anew where the network has others, or has them elsewhere: it was moved, cast,
        copied into or trained by something that laid them out."""
        held = [tensors[key] for tensors, key in self._slots]
        if not all(map(operator.is_, held, self._held)) or addresses(held) != self._addresses:
            self._lay_out(self._names)

    def _lay_out(self, names: list[str]) -> None:
        """Make the tensors of these names views of flat vectors; carry every patch's over. The base has what
        the network has where it had none."""
        before = {name: self.values(name) for name in self._vectors}
        modules = dict(self.model.named_modules())
        self._slots = [_slot(modules, name) for name in names]
        self._names, self._held = names, [tensors[key] for tensors, key in self._slots]
        sizes: dict[torch.dtype, int] = {}
        self._views = []
        for t in self._held:
            self._views.append((t.dtype, sizes.get(t.dtype, 0), t.shape))
            sizes[t.dtype] = sizes.get(t.dtype, 0) + t.numel()
        if any(t.is_inference() for t in self._held):
            raise UsageError("Patches needs a network that was not made in inference mode; make it outside")
        places = {t.device for t in self._held}
        if len(places) > 1:
            raise UsageError(f"Patches needs a network on one device, found {sorted(map(str, places))}")
        device = next(iter(places), torch.device("cpu"))
        with torch.inference_mode(False), torch.no_grad():
            self._flat = {dtype: torch.empty(n, dtype=dtype, device=device) for dtype, n in sizes.items()}
            for t, view in zip(self._held, self.views(self._flat).values(), strict=True):
                view.copy_(t)
                t.data = view
            for name in {None, *before}:
                self._vectors[name] = {dtype: vector.clone() for dtype, vector in self._flat.items()}
                for key, view in self.values(name).items():
                    if key in before.get(name, {}):
                        view.copy_(before[name][key])
        self._addresses = addresses(self._held)
        self._serving.forget()


class Switched:
    """The result of `use`: as a context manager it brings back what was in before."""

    def __init__(self, patches: Patches, before: str | None):
        self._patches, self._before = patches, before

    def __enter__(self) -> Patches:
        return self._patches

    def __exit__(self, *error: object) -> None:
        known = self._before is None or self._before in self._patches.names
        self._patches.use(self._before if known else None)


@torch.no_grad()
def _copy(target: Tensor, source: Tensor) -> None:
    """Copy a vector; on the CPU by one thread, for to wait for another takes longer than half a megabyte."""
    if target.device.type == "cpu":
        np.copyto(target.view(torch.uint8).numpy(), source.view(torch.uint8).numpy())
    else:
        target.copy_(source)


def _slot(modules: dict[str, nn.Module], name: str) -> tuple[dict[str, Any], str]:
    """Return the dictionary in which a module holds a tensor, and its key there."""
    owner, _, key = name.rpartition(".")
    module = modules[owner]
    return (module._parameters if key in module._parameters else module._buffers), key
