"""Seeded draws that are the same bits on every CPU, thread count, device and version.

A stream belongs to a seed and a name, so a parameter's values depend on nothing drawn before it. The raw bits
are numpy's Philox (its raw output is fixed for good; its `Generator` methods are not), and everything after
is + - * / sqrt in float64, which IEEE 754 rounds exactly. torch's own initialisers differ between CPU
capabilities and thread counts."""

from __future__ import annotations

import hashlib

import numpy as np

CHUNK = 1 << 15  # pairs drawn at a time: a few of these fit in a core's cache
LN2 = 0.6931471805599453
SQRT_HALF = 0.7071067811865476


def raw(seed: int, name: str) -> np.random.Philox:
    """Return the stream of random 64-bit words that belongs to (seed, name)."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def uniform(seed: int, name: str, n: int) -> np.ndarray:
    """Return (n,) float64 in [0, 1), multiples of 2⁻²⁴ and so exact in float32."""
    return (raw(seed, name).random_raw(n) >> np.uint64(40)) * 2.0**-24


def integers(seed: int, name: str, n: int, high: int) -> np.ndarray:
    """Return (n,) int64 in [0, high); high < 2³² (the bias is under high·2⁻⁶⁴)."""
    return (raw(seed, name).random_raw(n) % np.uint64(high)).astype(np.int64)


def permutation(seed: int, name: str, n: int) -> np.ndarray:
    """Return (n,) int64: a permutation of 0 … n−1, by sorting random keys."""
    return np.argsort(raw(seed, name).random_raw(n), kind="stable").astype(np.int64)


def normal(seed: int, name: str, n: int, cut: float = np.inf) -> np.ndarray:
    """Return (n,) float64, standard normal by Marsaglia's polar method, those beyond ±cut rejected."""
    stream, pieces, have = raw(seed, name), [], 0
    while have < n:
        # exact, in [-1, 1)
        u, v = (stream.random_raw(2 * CHUNK) >> np.uint64(11)).reshape(CHUNK, 2).T * 2.0**-52 - 1.0
        s = u * u + v * v
        inside = (s > 0) & (s < 1)
        u, v, s = u[inside], v[inside], s[inside]
        radius = np.sqrt(-2.0 * _log(s) / s)
        values = np.stack([u * radius, v * radius], axis=1).ravel()
        if cut < np.inf:
            values = values[np.abs(values) <= cut]
        pieces.append(values)
        have += values.size
    return np.concatenate(pieces)[:n] if pieces else np.empty(0)


def _log(x: np.ndarray) -> np.ndarray:
    """Return the natural logarithm to 1e-15 relative from exactly rounded operations: x = m·2ᵉ, ln m =
    2·artanh((m−1)/(m+1))."""
    m, e = np.frexp(x)
    low = m < SQRT_HALF
    m = np.where(low, 2.0 * m, m)
    t = (m - 1.0) / (m + 1.0)
    square = t * t
    series = np.full_like(t, 1 / 21)
    for k in range(19, 0, -2):
        series = series * square + 1 / k
    return 2.0 * t * series + (e - low) * LN2
