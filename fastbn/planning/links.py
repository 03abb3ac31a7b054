"""A model of what many devices send each other in a step, and how long that takes, from the number of
parameters and a link.

    ring   2(K−1)·α + 2(K−1)/K·S/β        each device sends 2(K−1)/K·S bytes, the least there is
    tree   2⌈log₂K⌉·α + 2·S/β              up and down a binary tree, pipelined an all-reduce of S bytes over
    K devices takes the quicker; α: seconds a message waits, β: bytes a second of one device's link

Source     Thakur, Rabenseifner, Gropp 2005, "Optimization of Collective Communication Operations in MPICH";
           Patarasuk, Yuan 2009, "Bandwidth optimal all-reduce algorithms" (the ring's bytes are the least);
           Sanders, Speck, Träff 2009, "Two-tree algorithms for full bandwidth broadcast, reduction and scan"
           (what NCCL's trees are).
Left out   overlap: stock DDP hides a part of its all-reduce behind its backward, and its figure is what there
           is to hide; slow links between fast ones; ranks that come late.
"""

from __future__ import annotations

import dataclasses
import math

DEVICES = (8, 64, 1024)


@dataclasses.dataclass(frozen=True)
class Link:
    """The link between one device and the others."""

    bandwidth: float  # bytes a second, β
    latency: float  # seconds a message, α

    def __str__(self) -> str:
        return f"{self.bandwidth / 1e9:g} GB/s a device and {self.latency * 1e6:g} µs a message"


ASSUMED = Link(25e9, 10e-6)  # a 200 Gb/s port a device


def sent_bytes(size: int, devices: int) -> float:
    """Return the bytes that each device sends, for the all-reduce of a message of `size` bytes by a ring."""
    return 2 * (devices - 1) / devices * size


def seconds(size: int, devices: int, link: Link = ASSUMED) -> float:
    """Return the seconds of an all-reduce of a message of `size` bytes."""
    ring = 2 * (devices - 1) * link.latency + sent_bytes(size, devices) / link.bandwidth
    tree = 2 * math.ceil(math.log2(devices)) * link.latency + 2 * size / link.bandwidth
    return min(ring, tree)


def synchronised_seconds(channels: list[int], devices: int, link: Link = ASSUMED) -> float:
    """Return the seconds of --sync-bn's all-reduces in a step: one forward and one back per BatchNorm of so
    many channels, two float64 per channel each."""
    return sum(2 * seconds(2 * 8 * c, devices, link) for c in channels)


def table(
    message: int,
    total: int,
    channels: list[int],
    step: float,
    devices: int,
    sync_bn: bool = False,
    link: Link = ASSUMED,
) -> list[str]:
    """Return lines for people. message: bytes of a step's all-reduce; total: all parameters; channels: of
    each BatchNorm; step: seconds of one on one device."""
    sizes = message, 4 * total
    lines = [f"{'':>8}  {'fastbn':^38}  {'stock DDP, everything trains':^38}"]
    head = f"{'sent a step':>14}{'time':>12}{'of the step':>12}"
    lines.append(f"{'devices':>8}  {head}  {head}" + (f"  {'--sync-bn':>12}" if sync_bn else ""))
    for number in sorted({*DEVICES, devices}):
        cells = []
        for size in sizes:
            spent = seconds(size, number, link)
            cells.append(
                f"{_bytes(sent_bytes(size, number)):>14}{_seconds(spent):>12}{spent / (spent + step):>12.1%}"
            )
        also = synchronised_seconds(channels, number, link)
        lines.append(f"{number:>8,}  {'  '.join(cells)}" + (f"  {_seconds(also):>12}" if sync_bn else ""))
    return lines


def _bytes(n: float) -> str:
    return f"{n / 1e6:,.1f} MB" if n >= 1e6 else f"{n / 1e3:,.1f} KB"


def _seconds(s: float) -> str:
    return f"{s * 1e3:,.2f} ms" if s < 10 else f"{s:,.1f} s"
