"""Rows and records that the report's tests are made of."""

import dataclasses
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # bench/ is not installed

from bench.records.rows import FORMAT, Record, Row

CASE = "ResNet-32, 32×32, batch 128, fp32"


CONDITIONS = {"device": "A <CPU>", "versions": {"torch": "2.13.0"}, "commit": "abc1234", "date": "2026-11-21"}


MACHINE = {"copy_bytes_per_second": 2e10, "matmul_flops_per_second": 2e11}


def step(provider, trains, seconds=None, **more):
    spread = (
        {} if seconds is None else {"seconds": seconds, "q1": seconds * 0.9, "q3": seconds * 1.2, "n": 15}
    )
    return Row(
        level="step", case=CASE, provider=provider, trains=trains, batch_size=128, **{**spread, **more}
    )


STEPS = [
    step("stock-full", "all", 0.4),
    step("stock-full compiled", "all", 0.2),
    step("stock-full <graph>", "all", 0.001, failed="gradient & weight < 0"),  # the fastest, but wrong
    step("stock-bn", "bn", 0.15, saved_bytes=315 * 10**6),
    step("fastbn native", "bn", 0.08, saved_bytes=178 * 10**6, energy_joules=6.4),
    step("fastbn reference", "bn", 0.3),
]


KERNELS = [
    Row(
        level="kernel",
        case="convolve",
        provider="stock",
        trains="",
        seconds=0.004,
        moved_bytes=4 * 10**7,
        flops=4 * 10**8,
    ),
    Row(
        level="kernel",
        case="convolve",
        provider="fastbn native",
        trains="",
        seconds=0.0025,
        moved_bytes=4 * 10**7,
        flops=4 * 10**8,
    ),
]


def record(*rows, machine=MACHINE):
    return Record(conditions=CONDITIONS, machine=machine, rows=list(rows))


def written(path, found):
    body = {"format": FORMAT, "conditions": found.conditions, "machine": found.machine}
    rows = [
        {name: value for name, value in dataclasses.asdict(row).items() if value is not None}
        for row in found.rows
    ]
    path.write_text(json.dumps(body | {"rows": rows}), encoding="utf-8")
    return path


def tree(found):
    """Return the page as XML: it fails where a tag is not closed, or a character not escaped."""
    return ET.fromstring(found.removeprefix("<!DOCTYPE html>\n"))


def sections(found):
    return [one.get("id") for one in tree(found).iter("section")]
