"""Where buffers lie: apart from all that is in use with them, and in hardly more memory than is in use at
once."""

from __future__ import annotations

import itertools
import random

import pytest

from fastbn.engine.native.memory_layout import LINE, Span, lay_out, scratch_bytes

SIZE = 1 << 13


def apart(spans):
    """No two spans that are in use at once share a byte."""
    for a, b in itertools.combinations(spans, 2):
        if a.kept == b.kept and a.first <= b.last and b.first <= a.last:
            assert a.end <= b.offset or b.end <= a.offset, (a, b)


def drawn(seed):
    """Return a forward of 40 calls, whose saved spans die in the backward of 40 more, and others of short
    lives."""
    draw = random.Random(seed)
    sizes = [SIZE // 2, SIZE, 3 * SIZE, 8 * SIZE + 1]
    saved = [Span(draw.choice(sizes), call, draw.randint(40, 79)) for call in range(40)]
    others = [
        Span(draw.choice(sizes), call, min(call + draw.randint(0, 5), 79 if call >= 40 else 39))
        for call in range(80)
        for _ in "ab"
    ]
    return saved, others


@pytest.mark.parametrize("seed", range(20))
def test_nothing_in_use_is_shared(seed):
    saved, others = drawn(seed)
    kept = lay_out(saved, others, 80)
    apart(saved + others)
    assert kept == sum(span.bytes for span in saved) and all(span.kept for span in saved)
    assert all(span.end <= kept for span in others if span.kept)
    assert all(span.offset % LINE == 0 for span in saved + others)
    for calls in (range(40), range(40, 80)):
        inside = [span for span in others if not span.kept and span.first in calls]
        assert scratch_bytes(saved + others, calls) == max(span.end for span in inside)


def test_a_chain_takes_what_is_in_use_at_once():
    """Of 30 equal outputs each is read by the next call and by its own backward; gradients live for two
    calls."""
    size, n = 4 * SIZE, 30
    saved = [Span(size, i, 2 * n - 1 - i) for i in range(n)]
    others = [Span(size, n + i, min(n + i + 1, 2 * n - 1)) for i in range(n)]
    kept = lay_out(saved, others, 2 * n)
    assert kept == n * size and scratch_bytes(saved + others, range(n)) == 0
    assert scratch_bytes(saved + others, range(n, 2 * n)) == size  # until one output has gone
    apart(saved + others)


def test_nothing_is_saved():
    others = [Span(SIZE, call, min(call + 1, 9)) for call in range(10)]
    assert lay_out([], others, 10) == 0
    assert scratch_bytes(others, range(10)) == 2 * SIZE
