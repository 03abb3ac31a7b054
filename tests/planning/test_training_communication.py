"""The model of what many devices send each other: bytes that can be counted by hand, and what --explain
says of them."""

import math

import pytest

from fastbn.planning.links import ASSUMED, Link, seconds, sent_bytes, synchronised_seconds
from fastbn.train import main
from fastbn.training.distributed.exchange import message_bytes

LINK = Link(bandwidth=1e9, latency=1e-5)


def ring(chunks):
    """Return the bytes that device 0 sends, counted: K−1 steps that reduce, K−1 that gather, a chunk of 1/K
    each."""
    return sum(1 for _ in range(2) for _ in range(chunks - 1)) / chunks


@pytest.mark.parametrize("devices", [1, 2, 3, 8, 1024])
def test_bytes_are_a_ring_s(devices):
    assert sent_bytes(1000, devices) == pytest.approx(1000 * ring(devices))
    assert sent_bytes(1000, devices) < 2000


def test_seconds():
    assert seconds(10**6, 1, LINK) == 0
    assert seconds(10**9, 2, LINK) == pytest.approx(1.0 + 2e-5)  # the ring: half there, half back
    # the tree: ten levels up and down
    assert seconds(8, 1024, LINK) == pytest.approx(2 * 10 * 1e-5, rel=1e-3)
    assert seconds(8, 1000, LINK) == seconds(8, 1024, LINK)
    times = [seconds(259_000, k, LINK) for k in (1, 2, 8, 64, 1024)]
    assert times == sorted(times) and all(map(math.isfinite, times))
    assert synchronised_seconds([16, 16, 32], 8, LINK) == pytest.approx(
        4 * seconds(256, 8, LINK) + 2 * seconds(512, 8, LINK)
    )


def test_the_deepest_network_sends_259_kb_where_stock_sends_56_mb():
    assert message_bytes(64_736) == 258_960
    assert 4 * 13_979_930 == 55_919_720


def test_explain_prints_it(capsys):
    tiny = [
        "--depth",
        "8",
        "--width",
        "4",
        "--dataset",
        "digits",
        "--batch-size",
        "8",
        "--explain",
        "--threads",
        "1",
    ]
    assert main([*tiny, "--devices", "100", "--step-seconds", "0.05", "--sync-bn"]) == 0
    said = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(said) if line.startswith("many"))
    assert "8 images and 50.0 ms a device and step, as given" in said[start] and str(ASSUMED) in said[start]
    assert [line.split()[0] for line in said[start + 3 :]] == ["8", "64", "100", "1,024"]
    assert "--sync-bn" in said[start + 2]
    assert f"{sent_bytes(message_bytes(168), 8) / 1e3:.1f} KB" in said[start + 3]
    assert f"{sent_bytes(4 * 5214, 8) / 1e3:.1f} KB" in said[start + 3]
    assert main([*tiny, "--devices", "8"]) == 0
    assert "as measured here" in capsys.readouterr().out


def test_wrong_arguments(capsys):
    for arguments, message in (
        (["--devices", "8"], "--devices belongs to --explain"),
        (["--explain", "--devices", "0"], "devices must be at least 1"),
        (["--explain", "--devices", "8", "--step-seconds", "0"], "step-seconds must be seconds above 0"),
        (["--rank-timeout", "-1"], "rank-timeout must be seconds above 0"),
    ):
        assert main(["--depth", "8", *arguments]) == 2
        assert message in capsys.readouterr().err
