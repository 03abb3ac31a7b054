"""Write what `experiments list` and `experiments show` print. Imports no torch."""

from __future__ import annotations

import shlex
import textwrap

from fastbn.cli.parser import COLUMNS
from fastbn.experiments.hours.estimate import Rate, about, hours, line_hours, source
from fastbn.experiments.preset import Preset, Quick, command
from fastbn.experiments.presets import PRESETS


def listing(rate: Rate) -> str:
    """Return every preset: its name, its hours here, its title, how many runs it has; then what the hours
    are."""
    width = max(map(len, PRESETS))
    entries = []
    for one in PRESETS.values():
        head = f"{one.name:{width}}  {about(hours(one, False, rate)):>11}  "
        runs = f"({_count(len(one.lines), 'line')}, {_count(one.seeds, 'seed')})"
        entries.append(
            textwrap.fill(
                f"{one.title} {runs}", COLUMNS - 1, initial_indent=head, subsequent_indent=" " * len(head)
            )
        )
    return "\n".join([*entries, "", textwrap.fill(source(rate), COLUMNS - 1)])


def show(one: Preset, rate: Rate) -> str:
    """Return everything that a preset says: its study, where it differs, each line as the trainer's command
    with its hours here and its published figures; then what the hours are."""
    lines = [
        _filled(one.name, one.title),
        _filled("source", one.source),
        _filled("states", one.states),
        f"seeds: {one.seeds}",
        "",
    ]
    for line in one.lines:
        figures = ", ".join(f"{value.of} {value.value:g}% ({value.grade})" for value in line.published)
        took = f"{about(line_hours(line, rate, one.examples or 0))} a seed"
        lines.append(f"{line.name}: {took}" + (f"; published {figures}" if figures else ""))
        after = f" --weights (the run of {line.after!r})" if line.after else ""
        lines.append(f"    python -m fastbn.train {shlex.join(command(line.settings))}{after}")
    lines += ["", f"in all: {about(hours(one, False, rate))}, {_count(one.seeds, 'seed')}"]
    if isinstance(one.quick, Quick):
        cut = shlex.join(command(one.quick.settings))
        took = about(hours(one, True, rate))
        lines.append(
            _filled("--quick", f"{took}: the lines {', '.join(one.quick.lines)}, one seed, with {cut}")
        )
    else:
        lines.append(_filled("--quick", f"none, {one.quick}"))
    return "\n".join([*lines, "", textwrap.fill(source(rate), COLUMNS - 1)])


def _filled(name: str, text: str) -> str:
    return textwrap.fill(f"{name}: {text}", COLUMNS - 1, subsequent_indent="    ", break_on_hyphens=False)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
