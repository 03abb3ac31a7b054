"""What the tests of patches share."""

import torch

import fastbn
from fastbn.trainable import entries


def trained(model, train="bn", seed=7):
    """Return the model as training might leave it: all that trains has moved, statistics and counters too."""
    fastbn.freeze(model, train)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in model.state_dict(keep_vars=True).items():
            moved = torch.rand(t.shape, generator=draw).to(t) * 0.3 + 0.1
            if name.endswith("num_batches_tracked"):
                t += 17
            elif t.requires_grad or name.endswith(("running_mean", "running_var")):
                mask = entries(model).get(name)
                t += moved if mask is None else moved * mask
    return model
