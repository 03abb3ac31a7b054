"""Who looks at a fused model's first training step: filled from above, told from below."""

from __future__ import annotations

import pkgutil
from typing import Any

# "module:function" of each, which takes the fused forward, its program and the call's inputs
FIRST_STEP: list[str] = []


def first_step(fused: Any, program: Any, inputs: list[Any]) -> None:
    """Call them, once a fused model, where this call is a training step's."""
    import torch  # which fastbn's own import does without

    if fused.advised or not fused.model.training or not torch.is_grad_enabled():
        return
    fused.advised = True
    for name in FIRST_STEP:
        pkgutil.resolve_name(name)(fused, program, inputs)
