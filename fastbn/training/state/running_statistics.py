"""Every BatchNorm's running statistics as one vector, for as long as training lasts: a step that has to be
taken again undoes what it moved by one copy, and ranks average them by one message."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Running:
    """`vector` (n,), of which the running means and variances are views; `counts` (m,) int64, the batches
    that they have seen. `parts`: the tensors that hold them, one or, on XLA, whose steps are never taken
    again, many."""

    def __init__(self, model: nn.Module):
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._statistics = [
            t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None
        ]
        self._batches = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        # it moves them behind a view's back
        if self._statistics and self._statistics[0].device.type == "xla":
            self.vector, self.counts, self.parts = torch.empty(0), torch.empty(0), self._statistics
        else:
            self.vector, self.counts = _viewed(self._statistics), _viewed(self._batches)
            self.parts = [self.vector]
        self._kept = self.vector.clone(), self.counts.clone()

    def keep(self) -> None:
        """Note the running statistics, to come back to."""
        self._kept[0].copy_(self.vector)
        self._kept[1].copy_(self.counts)

    def put_back(self) -> None:
        """Put the running statistics and the counts back to what they were when they were last kept."""
        self.vector.copy_(self._kept[0])
        self.counts.copy_(self._kept[1])

    def dissolve(self) -> None:
        """Give each storage of its own again."""
        for t in (*self._statistics, *self._batches):
            t.data = t.data.clone()


def _viewed(tensors: list[Tensor]) -> Tensor:
    """Return one vector of which all the tensors become views."""
    if not tensors:
        return torch.empty(0)
    vector = torch.cat([t.reshape(-1) for t in tensors])
    for t, part in zip(tensors, vector.split([t.numel() for t in tensors]), strict=True):
        t.data = part.view(t.shape)
    return vector
