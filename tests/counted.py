"""Counts the bytes of tensors: every storage that torch makes, and every block that the native engine lends."""

from __future__ import annotations

import weakref
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastbn.engine.buffers import Buffers


class Counted(TorchDispatchMode):
    """Inside, `live` is the bytes of what was made and still lives, `peak` the most that it was."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, int] = {}
        empty = Buffers.empty

        def lent(buffers, shape, dtype=torch.float32):
            t = empty(buffers, shape, dtype)
            self._note(t)
            return t

        self._patch = mock.patch.object(Buffers, "empty", lent)

    def __enter__(self):
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        self._patch.stop()
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for t in tree_leaves(made):
            if isinstance(t, torch.Tensor):
                self._note(t)
        return made

    def _note(self, t: torch.Tensor) -> None:
        storage = t.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.live -= self._seen.pop(key)
