"""python -m bench.report bench/results/*.json -o report.html: what the benchmarks recorded, as one
self-contained page.

    python -m bench.report RECORDS --readme README.md     # the same figures in the README's table,
    between its markers

A file in another format is named on stderr and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.records.rows import Record, load
from bench.report import readme
from bench.report.growth import scaling
from bench.report.kernels import kernels
from bench.report.runs import runs
from bench.report.sections import energy, headline, memory, steps
from fastbn.errors import UsageError
from fastbn.page.page import Html, heading, page, section, table
from fastbn.page.scales import number

UNITS = {
    "copy_bytes_per_second": ("copies, GB/s", 1e-9),
    "matmul_flops_per_second": ("matrix product, GFLOP/s", 1e-9),
}
LEAD = (
    "Stock PyTorch and fastbn on the same work, in turn, in one process. "
    "A ratio is always against the best stock provider; a provider that failed is named with its reason."
)


def read(paths: Sequence[Path]) -> list[Record]:
    """Return the records among these files, each file once. Raises UsageError if there is none, or for a file
    that can't be read."""
    records, left_out = [], []
    for path in dict.fromkeys(path.resolve() for path in paths):
        try:
            records += load([path])
        except OSError as error:
            raise UsageError(f"{path}: can't be read: {error.strerror}") from error
        except (ValueError, AttributeError):  # JSON of another format, or of no object; or no JSON
            left_out.append(path)
        except (KeyError, TypeError) as error:
            what = "a benchmark record, but damaged or of another version of fastbn"
            raise UsageError(f"{path}: {what}: {error}") from error
    if not records:
        remedy = "make one with pytest bench/ --benchmark-only"
        raise UsageError(f"no benchmark record among {len(paths)} files; {remedy}")
    if left_out:
        names = ", ".join(path.name for path in left_out)
        print(f"left out, not benchmark records: {names}", file=sys.stderr)
    return records


def conditions(records: Sequence[Record]) -> Html:
    """Return the section of everything under which the figures hold, by the number they carry."""
    parts = []
    for place, record in enumerate(records, 1):
        rows = []
        for name, value in record.conditions.items():
            pairs = value.items() if isinstance(value, dict) else [("", value)]
            rows += [[f"{name} {own}".strip().replace("_", " "), str(found)] for own, found in pairs]
        for name, rate in record.machine.items():
            words, scale = UNITS.get(name, (name.replace("_", " "), 1.0))
            rows.append([words, number(rate * scale)])
        parts += [heading(f"[{place}]"), table(["condition", "found"], rows)]
    return section("Conditions", *parts)


def render(records: Sequence[Record]) -> str:
    """Return the page of these records."""
    parts = (headline, steps, kernels, memory, scaling, runs, energy, conditions)
    return page("fastbn beside stock PyTorch", LEAD, [part(records) for part in parts])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.report", description="The benchmarks' records as a page."
    )
    parser.add_argument("records", type=Path, nargs="+", help="files that the benchmarks wrote")
    what = "the page; report.html if neither this nor --readme is given"
    parser.add_argument("-o", "--out", type=Path, help=what)
    what = f"writes the table between {' and '.join(readme.MARKERS)} anew"
    parser.add_argument("--readme", type=Path, help=what)
    asked = parser.parse_args(arguments)
    out = asked.out or (None if asked.readme else Path("report.html"))
    try:
        records = read(asked.records)
        if out:
            out.write_text(render(records), encoding="utf-8")
            print(f"{out}: written")
        if asked.readme:
            changed = readme.write(asked.readme, records)
            print(f"{asked.readme}: {'changed' if changed else 'unchanged, the table is the same'}")
    except (UsageError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
