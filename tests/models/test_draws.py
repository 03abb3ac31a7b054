"""The seeded draws: the same values for good, and the distributions they claim."""

import math

import numpy as np
import pytest

from fastbn import draws

N = 1_000_000


# The first of stream (0, "fc.weight"); floats in hex, every bit.
GOLDEN_RAW = [11964193979308283131, 12409886909693698136]
GOLDEN_UNIFORM = ["0x1.4c12b60000000p-1", "0x1.58718c0000000p-1"]
GOLDEN_NORMAL = [
    "0x1.27fc69063066ap+0",
    "0x1.581dfac55dcd0p+0",
    "0x1.3e920d9e3e2ccp+0",
    "0x1.79dc48b83c8b1p-1",
]
GOLDEN_INTEGERS = [7, 8, 7, 1, 0, 5]
GOLDEN_PERMUTATION = [6, 5, 4, 0, 3, 1, 2, 7]


def within(value, expected, std, n=N):
    """Five standard errors of a mean of n values with this standard deviation: one seed in 1.7 million
    would miss."""
    assert abs(value - expected) < 5 * std / math.sqrt(n), (value, expected)


def test_golden_values():
    assert draws.raw(0, "fc.weight").random_raw(2).tolist() == GOLDEN_RAW
    assert [x.hex() for x in draws.uniform(0, "fc.weight", 2)] == GOLDEN_UNIFORM
    assert [x.hex() for x in draws.normal(0, "fc.weight", 4)] == GOLDEN_NORMAL
    assert draws.integers(0, "fc.weight", 6, 9).tolist() == GOLDEN_INTEGERS
    assert draws.permutation(0, "fc.weight", 8).tolist() == GOLDEN_PERMUTATION


def test_a_stream_belongs_to_its_seed_and_name():
    one = draws.normal(0, "layer1.0.conv1.weight", 100)
    assert np.array_equal(one, draws.normal(0, "layer1.0.conv1.weight", 100))
    for seed, name in [(1, "layer1.0.conv1.weight"), (0, "layer1.0.conv2.weight")]:
        other = draws.normal(seed, name, 100)
        assert not np.isin(one, other).any()


# none; odd: half a pair; about one chunk's yield; several chunks
@pytest.mark.parametrize("n", [0, 1, 3, 51_000, 120_001])
def test_a_shorter_draw_is_a_prefix_of_a_longer_one(n):
    assert np.array_equal(draws.normal(3, "x", n), draws.normal(3, "x", 200_000)[:n])
    assert draws.normal(3, "x", n).shape == draws.uniform(3, "x", n).shape == (n,)
    assert np.array_equal(draws.uniform(3, "x", n), draws.uniform(3, "x", 200_000)[:n])


def test_uniform():
    x = draws.uniform(5, "u", N)
    assert x.min() >= 0 and x.max() < 1
    # a float64 near 1 would round up to 1
    assert np.array_equal(x, x.astype(np.float32)) and x.astype(np.float32).max() < 1
    assert np.array_equal(x * 2**24, np.round(x * 2**24))
    within(x.mean(), 1 / 2, math.sqrt(1 / 12))
    within(x.var(), 1 / 12, math.sqrt(1 / 80 - 1 / 144))
    within(np.mean(x[1:] * x[:-1]), 1 / 4, math.sqrt(1 / 9 - 1 / 16))  # neighbours do not correlate


def test_normal_moments_and_tail():
    x = draws.normal(5, "n", N)
    within(x.mean(), 0, 1)
    within(np.mean(x**2), 1, math.sqrt(2))
    within(np.mean(x**3), 0, math.sqrt(15))
    within(np.mean(x**4), 3, math.sqrt(105 - 9))
    within(np.mean(x[::2] * x[1::2]), 0, 1, N // 2)  # the two of a pair are independent
    within(np.mean(x[::2] ** 2 * x[1::2] ** 2), 1, math.sqrt(8), N // 2)
    for beyond in (1, 2, 3, 4):
        p = math.erfc(beyond / math.sqrt(2))
        within(np.mean(np.abs(x) > beyond), p, math.sqrt(p * (1 - p)))


def test_normal_cut_rejects_and_does_not_clamp():
    x = draws.normal(5, "n", N, cut=2.0)
    assert np.abs(x).max() < 2  # clamped, 4.6 % would lie on it
    kept, density = math.erf(math.sqrt(2)), math.exp(-2) / math.sqrt(2 * math.pi)
    within(x.mean(), 0, 1)
    within(np.mean(x**2), 1 - 4 * density / kept, math.sqrt(2))
    whole = draws.normal(5, "n", 1000)
    whole = whole[np.abs(whole) <= 2]
    assert np.array_equal(x[: whole.size], whole)


def test_logarithm_is_accurate():
    below_one = 1 - 2.0 ** -np.arange(1, 54)  # where a logarithm loses its relative accuracy first
    small = 2.0 ** -np.arange(1, 105)  # the polar method's s is a sum of squares of multiples of 2⁻⁵²
    # either side of the reduction's branch
    around_half = draws.SQRT_HALF * (1 + np.arange(-50, 51) * 2.0**-52)
    for x in (below_one, small, around_half, np.linspace(1e-3, 1 - 1e-3, 9973)):
        expected = np.array([math.log(value) for value in x])
        assert np.max(np.abs(draws._log(x) / expected - 1)) < 1e-15


def test_integers():
    x = draws.integers(5, "i", N, 9)  # 9: the crop offsets of a 4-pixel padding
    assert x.dtype == np.int64 and x.min() == 0 and x.max() == 8
    for value in range(9):
        within(np.mean(x == value), 1 / 9, math.sqrt(8) / 9)


@pytest.mark.parametrize("n", [0, 1, 2, 50_000])
def test_permutation(n):
    x = draws.permutation(5, "p", n)
    assert x.dtype == np.int64 and np.array_equal(np.sort(x), np.arange(n))
    assert n < 3 or not np.array_equal(x, draws.permutation(6, "p", n))


def test_numpys_global_generator_is_untouched():
    before = np.random.get_state()[1].copy()
    draws.normal(0, "x", 10)
    draws.permutation(0, "x", 10)
    assert np.array_equal(before, np.random.get_state()[1])
