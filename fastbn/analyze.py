"""python -m fastbn.analyze RUN [RUN …] -o report.html: what trained networks have become, as one
self-contained page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fastbn import files
from fastbn.cli import command
from fastbn.cli.parser import Parser
from fastbn.errors import MachineError
from fastbn.machine.load_torch import load_torch


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done; 2 a wrong argument, a run that is half written or damaged, or missing data; 130
    interrupted."""
    return command.run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    examples = (
        ("runs/resnet14-cifar10-bn-s0", "a report on one run, report.html"),
        ("runs/bn runs/all -o two.html", "two kinds of training side by side"),
        ("RUN --no-data", "without what needs the test set"),
    )
    described = "Write a report on one or several runs: curves, γ and β, features, pruning."
    parser = Parser("analyze", examples, description=described)
    parser.usage = f"{parser.prog} RUN [RUN ...] [options]"
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="what python -m fastbn.train wrote; seeds of one run are averaged",
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page (report.html)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where the data sets lie now")
    parser.add_argument(
        "--no-data",
        action="store_true",
        help="leave out what needs the test set: dead features, pictures, pruning",
    )
    parser.add_argument(
        "--limit-test",
        type=int,
        metavar="N",
        help="look at this many test images only; as many as the run did",
    )
    parser.add_argument(
        "--layer",
        metavar="NAME",
        help="the BatchNorm whose maps and most exciting images are shown (layer1.0.bn1, …)",
    )
    parser.add_argument("--thresholds", type=thresholds, metavar="0.01,0.1", help="of |γ|, to prune by")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="where the frozen weights' file lies now, if the runs began from one",
    )
    command.show(analyze(parser.parse_args(arguments)))
    return 0


def thresholds(text: str) -> tuple[float, ...]:
    """Return the thresholds that a word of the command line lists, as in 0.01,0.1: finite, not negative,
    rising. Raises argparse.ArgumentTypeError for any other."""
    try:
        cuts = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        cuts = ()
    if not cuts or not all(0 <= t < float("inf") for t in cuts) or list(cuts) != sorted(set(cuts)):
        raise argparse.ArgumentTypeError(
            f"must be rising numbers from 0 on, separated by commas, as in 0.01,0.1; got {text!r}"
        )
    return cuts


def analyze(asked: argparse.Namespace) -> str:
    """Write the page, and return the line that says so."""
    load_torch()
    from fastbn.analysis.report import render
    from fastbn.analysis.runs import read
    from fastbn.analysis.subject import subjects
    from fastbn.analysis.thresholds import THRESHOLDS

    runs = [read(path, asked.weights) for path in dict.fromkeys(str(Path(run)) for run in asked.runs)]
    all_subjects = subjects(runs)
    tests = (
        None if asked.no_data else [s.run.test_set(asked.data_dir, asked.limit_test) for s in all_subjects]
    )
    content = render(runs, tests, asked.layer, asked.thresholds or THRESHOLDS)
    try:
        files.write(asked.out, content.encode("utf-8"))
    except (OSError, ValueError) as error:
        raise MachineError(f"cannot write {asked.out}: {files.reason(error)}; choose another -o") from error
    return f"{asked.out}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {len(content) / 1e6:.1f} MB"


if __name__ == "__main__":
    command.leave(main())
