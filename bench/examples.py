"""python -m bench.examples federated gan: runs examples and keeps what they found.

Writes bench/results/example-<name>-<date>.json and the example's table in docs/examples.md, of gan its
picture too. What follows `--` goes to the example.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.records.between import conditions, put, table
from bench.records.conditions import RESULTS, ROOT
from bench.records.rows import Record, Row, new

PAGE, PICTURE = ROOT / "docs" / "examples.md", ROOT / "docs" / "figures" / "gan.png"


def kept(name: str, more: Sequence[str]) -> Record:
    """Return the record of an example that runs now, in a process of its own."""
    record = new()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        picture = ["--picture", str(PICTURE)] if name == "gan" else []
        command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--out", str(out), *picture, *more]
        subprocess.run(command, check=True)
        found = json.loads(out.read_text(encoding="utf-8"))
    record.conditions["settings"] = found["settings"]
    record.rows = [row for own in found["rows"] for row in ROWS[name](own)]
    return record


def federated_rows(own: dict[str, Any]) -> Iterator[Row]:
    for seed, run in enumerate(own["runs"]):
        for client, accuracy in run.items():
            more = {"client": client, "seed": seed, "bytes": own["bytes"]}
            yield _row(f"federated, {client}, seed {seed}", own["sent"], more, accuracy=accuracy)


def gan_rows(own: dict[str, Any]) -> Iterator[Row]:
    more = {name: own[name] for name in ("distance", "trained", "lr") if name in own}
    yield _row("gan", own["samples"], more, seconds=own.get("seconds"))


def _row(case: str, provider: str, more: dict[str, Any], **found: Any) -> Row:
    return Row(level="example", case=case, provider=provider, trains="", more=more, **found)


def federated(record: Record, file: str) -> str:
    """Return the table of accuracies by what is sent."""
    settings = record.conditions["settings"]
    found: dict[str, dict[int, dict[str, float]]] = {}
    for row in record.rows:
        assert row.more is not None and row.accuracy is not None
        found.setdefault(row.provider, {}).setdefault(row.more["seed"], {})[row.more["client"]] = row.accuracy
    size = {row.provider: (row.more or {})["bytes"] for row in record.rows}
    clients, lines = list(next(iter(found.values()))[0]), []
    for sent, runs in found.items():
        means = [statistics.fmean(run.values()) for run in runs.values()]
        spread = f" ± {100 * statistics.stdev(means):.1f}" if len(means) > 1 else ""
        own = [f"{100 * statistics.fmean(run[client] for run in runs.values()):.1f}" for client in clients]
        lines.append([sent, f"{size[sent] / 1000:.1f}", f"{100 * statistics.fmean(means):.1f}{spread}", *own])
    said = (
        f"ResNet-{settings['depth']}, {settings['epochs']} epochs on the server, {settings['rounds']} rounds "
        f"of an epoch at each client; accuracy in percent, mean ± standard deviation of {settings['seeds']} "
        f"seeds, and of each client; KB that a client sends in a round, and gets back. "
        f"{conditions(record, file)}"
    )
    return f"{said}\n\n" + table(["sent", "KB a round", "accuracy", *clients], lines)


def gan(record: Record, file: str) -> str:
    """Return the table of distances by what trained."""
    settings, lines = record.conditions["settings"], []
    for row in record.rows:
        more = row.more or {}
        trained = f"{more['trained']:,}" if "trained" in more else "—"
        seconds = "—" if row.seconds is None else f"{row.seconds:.0f}"
        lines.append([row.provider, f"{more['distance']:.1f}", trained, seconds])
    said = f"{settings['epochs']} epochs, width {settings['width']}, seed {settings['seed']}."
    head = ["samples", "Fréchet distance", "trained numbers", "seconds"]
    return f"{said} {conditions(record, file)}\n\n" + table(head, lines)


ROWS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {"federated": federated_rows, "gan": gan_rows}
TABLES: dict[str, Callable[[Record, str], str]] = {"federated": federated, "gan": gan}


def write(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Put the tables of the newest records into the page."""
    for name, make in TABLES.items():
        put(page, name, f"example-{name}-*.json", make, results)


def main() -> None:
    own = sys.argv[1:]
    place = own.index("--") if "--" in own else len(own)
    parser = argparse.ArgumentParser("python -m bench.examples", description=__doc__)
    what = f"of {', '.join(TABLES)}; none: the page alone"
    parser.add_argument("names", nargs="*", metavar="NAME", help=what)
    asked = parser.parse_args(own[:place])
    for name in asked.names:
        if name not in TABLES:
            parser.error(f"no record is kept of an example {name!r}; choose of {', '.join(TABLES)}")
        print(kept(name, own[place + 1 :]).save(f"example-{name}"))
    write()


if __name__ == "__main__":
    main()
