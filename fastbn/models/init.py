"""The seeded draw of every parameter, a stream per name; the fingerprint of the frozen ones.

Source   He et al. 2015, Delving Deep into Rectifiers (kaiming, he_normal); Saxe et al. 2013 (orthogonal);
         Glorot, Bengio 2010 (glorot_uniform, Keras's default); torch_uniform is what torch's layers are made
         with; Frankle et al. 2020, Training BatchNorm and Only BatchNorm (γ uniform in [0, 1), the binary
         weights).
Drawn in float64, cast to the parameter's dtype at the end.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fastbn import draws
from fastbn.models.families import Spec
from fastbn.models.load_weights import load_weights
from fastbn.trainable import NORMS

__all__ = ["BETA", "GAMMA", "WEIGHT", "draw", "fingerprint", "load_weights"]

ParameterShape = tuple[int, ...]
CUT_STD = 0.87962566342397  # the standard deviation of a standard normal cut at ±2, Keras's constant


def _fan_in(shape: ParameterShape) -> int:
    return math.prod(shape[1:])


def _signed_uniform(seed: int, name: str, n: int) -> np.ndarray:
    return 2.0 * draws.uniform(seed, name, n) - 1.0


def _kaiming_normal(seed: int, name: str, shape: ParameterShape) -> np.ndarray:
    """Draw from N(0, 2/fan_in)."""
    return draws.normal(seed, name, math.prod(shape)) * math.sqrt(2.0 / _fan_in(shape))


def _kaiming_uniform(seed: int, name: str, shape: ParameterShape) -> np.ndarray:
    """Draw uniformly in ±√(6/fan_in), of variance 2/fan_in."""
    return _signed_uniform(seed, name, math.prod(shape)) * math.sqrt(6.0 / _fan_in(shape))


def _orthogonal(seed: int, name: str, shape: ParameterShape) -> np.ndarray:
    """Draw orthonormal rows, or columns where there are more rows: Q of a QR, its signs fixed by R's diagonal
    so that Q is uniform (Haar)."""
    rows, columns = shape[0], _fan_in(shape)
    normals = draws.normal(seed, name, rows * columns).reshape(rows, columns)
    q, r = np.linalg.qr(normals.T if rows < columns else normals)
    q = q * np.sign(np.diag(r))
    return q.T if rows < columns else q


def _binary(seed: int, name: str, shape: ParameterShape) -> np.ndarray:
    """Draw ±√(2/fan_in), with the signs of kaiming_normal's draw; zero counts as positive."""
    return np.where(draws.normal(seed, name, math.prod(shape)) < 0, -1.0, 1.0) * math.sqrt(
        2.0 / _fan_in(shape)
    )


def _torch_uniform(seed: int, name: str, shape: ParameterShape) -> np.ndarray:
    """Draw uniformly in ±1/√fan_in."""
    return _signed_uniform(seed, name, math.prod(shape)) / math.sqrt(_fan_in(shape))


def _glorot_uniform(seed: int, name: str, shape: ParameterShape) -> np.ndarray:
    """Draw uniformly in ±√(6/(fan_in + fan_out))."""
    fans = _fan_in(shape) + shape[0] * math.prod(shape[2:])
    return _signed_uniform(seed, name, math.prod(shape)) * math.sqrt(6.0 / fans)


def _he_normal(seed: int, name: str, shape: ParameterShape) -> np.ndarray:
    """Draw from a normal cut at ±2σ with standard deviation √(2/C) after the cut, Keras's HeNormal for a
    vector of C."""
    return draws.normal(seed, name, shape[0], cut=2.0) * (math.sqrt(2.0 / shape[0]) / CUT_STD)


Init = Callable[[int, str, ParameterShape], np.ndarray]
WEIGHT: dict[str, Init] = {
    "kaiming_normal": _kaiming_normal,
    "kaiming_uniform": _kaiming_uniform,
    "orthogonal": _orthogonal,
    "binary": _binary,
    "torch_uniform": _torch_uniform,
    "glorot_uniform": _glorot_uniform,
}
GAMMA: dict[str, Init] = {
    "uniform": lambda seed, name, shape: draws.uniform(seed, name, shape[0]),
    "ones": lambda seed, name, shape: np.ones(shape),
    "uniform_symmetric": lambda seed, name, shape: _signed_uniform(seed, name, shape[0]),
    "normal": lambda seed, name, shape: draws.normal(seed, name, shape[0]),
    "he_normal": _he_normal,
}
BETA: dict[str, Init] = {
    "zeros": lambda seed, name, shape: np.zeros(shape),
    "ones": lambda seed, name, shape: np.ones(shape),
}


def _within(bound: float) -> Init:
    return lambda seed, name, shape: _signed_uniform(seed, name, math.prod(shape)) * bound


def draw(model: nn.Module, spec: Spec) -> None:
    """Fill every Conv2d, Linear, norm, Embedding and LSTM of `model` in place from `spec`'s seed and inits;
    running statistics become 0, 1, 0.

    A parameter's values depend on the seed, its name, its shape and its init. A bias is uniform in
    ±1/√fan_in, an LSTM's parameters in ±1/√hidden, an embedding normal with zeros for its padding: torch's
    own. A parameter on the meta device is passed over."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            _fill(module.weight, WEIGHT[spec.weight_init], spec.seed, f"{name}.weight")
            if module.bias is not None:
                bound = 1.0 / math.sqrt(_fan_in(tuple(module.weight.shape)))
                _fill(module.bias, _within(bound), spec.seed, f"{name}.bias")
        elif isinstance(module, NORMS) and isinstance(module.weight, nn.Parameter):
            assert isinstance(module.bias, nn.Parameter)
            _fill(module.weight, GAMMA[spec.gamma_init], spec.seed, f"{name}.weight")
            _fill(module.bias, BETA[spec.beta_init], spec.seed, f"{name}.bias")
            if isinstance(module, _NormBase):
                module.reset_running_stats()
        elif isinstance(module, nn.Embedding):
            _fill(
                module.weight,
                lambda seed, name, shape: draws.normal(seed, name, math.prod(shape)),
                spec.seed,
                f"{name}.weight",
            )
            if module.padding_idx is not None and not module.weight.is_meta:
                module.weight.data[module.padding_idx] = 0
        elif isinstance(module, nn.LSTM):
            for key, parameter in module.named_parameters():
                _fill(parameter, _within(1.0 / math.sqrt(module.hidden_size)), spec.seed, f"{name}.{key}")


def fingerprint(model: nn.Module, names: Iterable[str] | None = None) -> str:
    """Return the SHA-256 (hex) over the name, the shape and the little-endian float32 bytes of parameters and
    buffers, in state_dict order.

    names: which; by default the frozen ones of a model that trains BatchNorm, every parameter that no norm
    layer owns. What requires grad makes no difference. Raises KeyError for a name that is not in the
    state_dict."""
    state = model.state_dict()
    if names is None:
        norms = [module for module in model.modules() if isinstance(module, NORMS)]
        owned = {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
        chosen = {
            name
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if id(parameter) not in owned
        }
    else:
        chosen = set(names)
        if missing := sorted(chosen - state.keys()):
            raise KeyError(f"not in the state_dict: {', '.join(missing[:3])}")
    digest = hashlib.sha256()
    for name, value in state.items():
        if name in chosen:
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(
                value.detach()
                .to("cpu", torch.float32)
                .contiguous()
                .numpy()
                .astype("<f4", copy=False)
                .tobytes()
            )
    return digest.hexdigest()


@torch.no_grad()
def _fill(parameter: Tensor, init: Init, seed: int, name: str) -> None:
    if not parameter.is_meta:
        shape = tuple(parameter.shape)
        parameter.copy_(torch.from_numpy(init(seed, name, shape).reshape(shape)))
