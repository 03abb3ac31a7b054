"""python -m bench.architectures [NAME …]: what of other people's networks runs fused, whether it is right,
how fast it is and in how much memory; a process each.

Writes bench/results/architectures-<device>-<date>.json, or what was asked for into the one of today, and the
tables of docs/networks.md from all such records. With --rates it measures nothing: it fits the rates that
`explain` predicts a step's gain by to all such records, and writes the tables."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from typing import Any

import torch
from tqdm import tqdm

from bench.architectures import check, measure, rates
from bench.architectures.catalogue import ARCHITECTURES, LIBRARIES, Architecture, named
from bench.architectures.table import MARKERS, README_MARKERS, sentence, tables
from bench.records import between
from bench.records.conditions import RESULTS, ROOT, conditions, write
from bench.records.rows import slug
from bench.suite.process import told, words
from fastbn.cli.command import run
from fastbn.errors import UsageError

PAGE, README = ROOT / "docs" / "networks.md", ROOT / "README.md"
PARTS = ("agreement", "work", "seconds", "memory")


def figures(architecture: Architecture, part: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Return what one part says of a network, in this process."""
    size = min(asked.size or architecture.size, architecture.size)
    if part == "agreement":
        found = check.coverage(architecture)
        agreement = dataclasses.asdict(check.compare(architecture, asked.check_size))
        return {"convolutions": found.convolutions, "multiplications": found.multiplications, **agreement}
    if part == "work":
        return check.work(architecture, asked.batch_size, size)
    torch.set_num_threads(asked.threads)
    head = {"batch_size": asked.batch_size, "size": size, "threads": asked.threads}
    if part == "seconds":
        taken = measure.seconds(architecture, asked.batch_size, size, asked.rounds, asked.providers)
        return {**head, "seconds": taken}
    return {"peak_bytes": measure.peak_bytes(architecture, asked.batch_size, size)}


def fresh(architecture: Architecture, part: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Return the same by a process of its own, or why it has no figures."""
    environment = os.environ | (measure.GIVE_BACK if part == "memory" else {})
    passed = {
        name: getattr(asked, name) for name in ("batch_size", "size", "check_size", "rounds", "threads")
    }
    options = [*words(only=architecture.key, part=part, **passed), "--providers", *asked.providers]
    try:
        return told("bench.architectures", *options, env=environment, stderr=subprocess.PIPE)
    except subprocess.CalledProcessError as error:
        return {f"{part}_failed": (error.stderr.strip().splitlines() or ["it ended without a word"])[-1]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.architectures", description=__doc__)
    parser.add_argument("names", nargs="*", help="of networks; by default all of them")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, help="of the images, at most; by default each network's own")
    parser.add_argument("--check-size", type=int, default=96, help="of the images compared in float64")
    parser.add_argument("--rounds", type=int, default=5, help="steps a provider that are timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--providers", nargs="+", choices=measure.PROVIDERS, default=measure.USUAL, metavar="PROVIDER",
        help=f"whose steps are timed: {', '.join(map(repr, measure.PROVIDERS))}; by default the first 3",
    )  # fmt: skip
    parser.add_argument("--part", choices=PARTS, help="only this one")
    parser.add_argument("--rates", action="store_true", help="fit them to the records; measure nothing")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.only:
        print(json.dumps(figures(named([asked.only])[0], asked.part, asked)))
        return 0
    if asked.rates:
        rates.write_rates(RESULTS)
        between.write(PAGE, MARKERS, tables(RESULTS))
        return 0
    if missing := sorted(set(measure.USUAL) - set(asked.providers)):
        raise UsageError(f"--providers lacks {', '.join(map(repr, missing))}: ratios need them")
    rows = []
    for architecture in tqdm(named(asked.names), unit="network", disable=None):
        row: dict[str, Any] = {"library": architecture.library, "name": architecture.name}
        row["batch_size"] = asked.batch_size
        for part in [asked.part] if asked.part else PARTS:
            row |= fresh(architecture, part, asked)
            if f"{part}_failed" not in row:
                row[f"{part}_commit"] = conditions()["commit"]
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    torch.set_num_threads(asked.threads)
    known = conditions()
    others = [name for name in LIBRARIES if name not in known["versions"]]
    libraries = {name: importlib.metadata.version(name) for name in others}
    record: dict[str, Any] = {"conditions": known | {"libraries": libraries}, "rows": rows}
    path = RESULTS / f"architectures-{slug(known['device'])}-{known['date']}.json"
    if path.exists():
        record["rows"] = _merged(json.loads(path.read_text(encoding="utf-8"))["rows"], rows)
    write(path, record)
    between.write(PAGE, MARKERS, tables(RESULTS))
    between.write(README, README_MARKERS, sentence(RESULTS))
    print(f"{path.name}, {PAGE.name} and {README.name} are written")
    return 0


def _merged(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a record's rows with what was found now in its place, by batch size and in the catalogue's
    order."""
    merged: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in (*before, *rows):
        kept = merged.setdefault((row["library"], row["name"], row["batch_size"]), {})
        kept.update(row)
        for part in PARTS:
            if f"{part}_commit" in row:  # it worked this time
                kept.pop(f"{part}_failed", None)
    order = [(a.library, a.name) for a in ARCHITECTURES]
    return sorted(
        merged.values(), key=lambda row: (row["batch_size"], order.index((row["library"], row["name"])))
    )


if __name__ == "__main__":
    sys.exit(run(main))
