"""python -m fastbn.experiments list | show NAME | run NAME | table NAME: the papers' experiments, one command
each.

table --all reads the records of finished runs and the folders of those under way, and prints every experiment
of which there is one; with --markdown it writes docs/reproduction.md and its figures."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fastbn import files
from fastbn.cli import command as command_line
from fastbn.cli.parser import Parser
from fastbn.errors import MachineError, Stopped, UsageError
from fastbn.experiments.hours.estimate import rate
from fastbn.experiments.listing import listing, show
from fastbn.experiments.preset import Job, Preset, folder, jobs, shard
from fastbn.experiments.presets import preset
from fastbn.experiments.table import table

DONE, FAILED = 0, 1
PAGE, RECORDS = "docs/reproduction.md", ("bench/results", "reproduction")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done; 1 a run failed (the table says which); 2 a wrong
    argument; 130 and 143 stopped by a signal, after saving."""
    return command_line.run(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(words: list[str]) -> int:
    words, more = (
        (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    )
    try:
        asked = _parser().parse_args(words)
        if asked.what == "list":
            command_line.show(listing(rate()))
            return DONE
        if asked.what == "table" and (asked.all or asked.markdown):
            return _all(asked)
        if asked.name is None:
            raise UsageError("table needs the name of an experiment, or --all; see list")
        chosen = preset(asked.name)
        if asked.what == "show":
            command_line.show(show(chosen, rate()))
            return _hours(chosen, asked.quick) if asked.hours else DONE
        for flag, number in (("--seeds", asked.seeds), ("--replicas", getattr(asked, "replicas", 1))):
            if number is not None and number < 1:
                raise UsageError(f"{flag} must be at least 1, got {number}")
        if asked.data_dir is not None:
            more = ["--data-dir", asked.data_dir, *more]
        expanded = jobs(chosen, Path(asked.out), asked.quick, asked.seeds, more)
        _shard(getattr(asked, "shard", "0/1"))
        for job in expanded:
            _ = job.config  # a wrong argument is told before anything runs
        return _run(chosen, expanded, asked) if asked.what == "run" else _table(chosen, expanded, asked)
    except Stopped as stopped:
        command_line.say(f"fastbn: {stopped}; the same command continues")
        return stopped.exit_code


def _hours(chosen: Preset, quick: bool) -> int:
    """Say how long the experiment takes here: each line as it is measured, then the whole."""
    from fastbn.machine.load_torch import load_torch

    load_torch()
    from fastbn.experiments.hours.measure import hours, said
    from fastbn.machine import devices

    command_line.show("\nhours, a step of each line measured here, without the tests after each epoch:")
    total = hours(chosen, quick, lambda line: command_line.show(f"    {line}"))
    seeds, load, processors = 1 if quick else chosen.seeds, devices.load(), devices.processors()
    busy = f"; it is busy now, {load:.1f} processes want {processors} processors" if load > processors else ""
    how = f"{seeds} seeds one after the other" if seeds > 1 else "one seed"
    command_line.show(f"{said(total)} in all on this machine, {how}{busy}")
    return DONE


def _run(chosen: Preset, expanded: list[Job], asked: argparse.Namespace) -> int:
    from fastbn.experiments.launch import devices, run

    try:
        failed = run(shard(expanded, *_shard(asked.shard), asked.replicas), devices(), asked.replicas)
    finally:
        _table(chosen, expanded, asked)
    return FAILED if failed else DONE


def _all(asked: argparse.Namespace) -> int:
    """Print the tables of all that is on record, or write the page of it."""
    from fastbn.experiments.records import read
    from fastbn.experiments.reproduction import write
    from fastbn.experiments.study_tables import studies

    if asked.name is not None or asked.quick or asked.seeds is not None:
        raise UsageError(
            "table --all reads the records of every experiment; leave out NAME, --quick and --seeds"
        )
    runs = read([Path(place) for place in asked.records])
    if asked.markdown:
        for path in write(Path(asked.markdown), runs):
            print(f"{path}: written")
    else:
        print(studies(runs))
    return DONE


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise UsageError(f"--shard must be I/N with I from 0 to N-1, got {text!r}")
    return int(match[1]), int(match[2])


def _table(chosen: Preset, expanded: list[Job], asked: argparse.Namespace) -> int:
    """Print the table, and keep it beside the runs."""
    text, place = table(chosen, expanded, asked.quick), folder(Path(asked.out), chosen, asked.quick)
    if files.is_folder(place):
        try:
            files.write(place / "table.md", text.encode("utf-8"))
        except OSError as error:
            raise MachineError(
                f"cannot write {place / 'table.md'}: {files.reason(error)}; choose another --out"
            ) from error
    command_line.show(text.removesuffix("\n"))
    return DONE


def _parser() -> Parser:
    examples = (
        ("list", "every experiment"),
        ("show paper-width --hours", "its lines, its study's figures, its hours on this machine"),
        ("run paper-width --quick", "a cut of minutes, and its table"),
    )
    parser = Parser("experiments", examples, description="The papers' experiments, one command each.")
    kinds = parser.add_subparsers(dest="what", required=True, metavar="list|show|run|table")
    kinds.add_parser("list", help="every experiment, with its hours on this machine")
    shown = kinds.add_parser("show", help="one experiment: its study, its lines, their figures and hours")
    shown.add_argument("name", metavar="NAME", help="of an experiment, as list has it")
    shown.add_argument(
        "--hours",
        action="store_true",
        help="and how long it takes on this machine: a step of each line is measured",
    )
    shown.add_argument("--quick", action="store_true", help="with --hours: of the cut that run --quick makes")
    for what, help in (
        ("run", "run what is not done yet, then the table"),
        ("table", "the table of what is there"),
    ):
        sub = kinds.add_parser(
            what, help=help, epilog="What follows -- goes to every run, over the preset's: … -- --device cpu"
        )
        optional = "?" if what == "table" else None
        sub.add_argument("name", nargs=optional, metavar="NAME", help="of an experiment, as list has it")
        sub.add_argument(
            "--quick", action="store_true", help="a cut of minutes, never compared with the published figures"
        )
        sub.add_argument("--seeds", type=int, metavar="N", help="seeds 0 … N−1; the preset's own number")
        if what == "run":
            sub.add_argument(
                "--shard",
                default="0/1",
                metavar="I/N",
                help="the I-th of N parts, from 0: for a Slurm array, or Ray",
            )
            sub.add_argument(
                "--replicas",
                type=int,
                default=1,
                metavar="K",
                help="train K seeds of a line side by side in one process (1)",
            )
        else:
            sub.add_argument(
                "--all",
                action="store_true",
                help="every experiment of which --records hold a run, and no NAME",
            )
            sub.add_argument(
                "--markdown",
                nargs="?",
                const=PAGE,
                metavar="FILE",
                help=f"all of it as a page with figures ({PAGE})",
            )
            sub.add_argument(
                "--records",
                nargs="+",
                default=RECORDS,
                metavar="DIR",
                help=f"what --all reads ({' '.join(RECORDS)})",
            )
        sub.add_argument("--data-dir", metavar="DIR", help="where the data set lies (data)")
        sub.add_argument(
            "--out",
            default="runs/experiments",
            metavar="DIR",
            help="the folder of experiments (runs/experiments)",
        )
    return parser


if __name__ == "__main__":
    command_line.leave(main())
