"""python -m bench.record RUN …: keeps what runs reached as bench/results/run-<name>-<date>.json, conditions
included.

A folder of runs may be given too. A run that is under way is copied to reproduction/ as it stands, from where
--resume continues it; the network of a finished BN-only run goes to pretrained/. --together NAME: runs that
differ by seed or machine in one record.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.records.conditions import RESULTS, ROOT
from bench.records.keep import PRETRAINED, UNDER_WAY, keep
from bench.records.runs import together
from fastbn.errors import MachineError, UsageError


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep every run that is found below the given folders."""
    parser = argparse.ArgumentParser("python -m bench.record", description="Keeps runs in the repository.")
    what = "a run's folder, or one that holds runs"
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=what)
    for flag, default, of in (
        ("--results", RESULTS, "the records"),
        ("--under-way", UNDER_WAY, "runs that are not finished"),
        ("--pretrained", PRETRAINED, "finished BN-only networks"),
    ):
        what = f"the folder of {of} ({'/'.join(default.relative_to(ROOT).parts)})"
        parser.add_argument(flag, type=Path, default=default, metavar="DIR", help=what)
    what = "one record of all, which differ by seed or machine alone"
    parser.add_argument("--together", metavar="NAME", help=what)
    asked = parser.parse_args(arguments)
    try:
        if asked.together:
            print(together(asked.together, asked.runs, asked.results))
            return
        for line in keep(asked.runs, asked.results, asked.under_way, asked.pretrained):
            print(line)
    except (UsageError, MachineError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
