"""Write docs/reproduction.md and its figures from the records of runs.

The command is python -m fastbn.experiments table --all --markdown. What agrees, what does not and why is
written by hand, in reproduction-discussion.md beside the page, which the page includes; its figures come from
the records too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fastbn.errors import UsageError
from fastbn.experiments.figures import Drawing, drawings
from fastbn.experiments.preset import GRADES
from fastbn.experiments.presets import preset
from fastbn.experiments.records import Run, runs_of
from fastbn.experiments.study_tables import counted, ours, run_table, studies
from fastbn.page.page import standalone

DISCUSSION = "reproduction-discussion.md"
FIGURES = "figures"
HEAD = f"""<!-- Written by python -m fastbn.experiments table --all --markdown: do not edit.
     The section on what agrees is {DISCUSSION}. -->

# The studies, reproduced"""
LEAD = """Finished and counted here: {done} runs; under way, and counted nowhere: {under_way}.
`python -m fastbn.experiments show NAME` prints an experiment's recipe, line by line.

`n` is the number of seeds, ± the sample standard deviation over them. A difference is ours less the published
figure, in points. Where a study has two figures of one line they span a range; no study prints a spread over
seeds. A run of which several experiments have a line counts once in each of their tables.

{grades}"""


def write(page: Path, runs: Sequence[Run]) -> list[Path]:
    """Write the page and its figures; return their paths.

    Raises UsageError where the discussion is missing, or names a line of which no run is finished.
    """
    discussion = page.with_name(DISCUSSION)
    if not discussion.exists():
        raise UsageError(
            f"{page} includes {discussion}, which is not there; write into it what agrees, what does not "
            "and why"
        )
    texts = {page: markdown(runs, discussion.read_text(encoding="utf-8"))}
    for one in drawings(runs):
        if one.chart:
            texts[page.parent / FIGURES / f"{one.name}.svg"] = standalone(one.chart, one.title)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(texts)


def markdown(runs: Sequence[Run], discussion: str) -> str:
    """Return the page's text."""
    pictures = ["## Figures", *map(_drawn, drawings(runs))]
    parts = [
        HEAD,
        _lead(runs),
        told(discussion, runs).strip(),
        *pictures,
        studies(runs),
        "## Runs",
        run_table(runs),
    ]
    return "\n\n".join(parts) + "\n"


def told(text: str, runs: Sequence[Run]) -> str:
    """Put the figures of runs where the text names their lines: {paper-depth: 14 bn} becomes 49.50% (n = 1).

    Raises UsageError for a line of which no run is finished: a text that speaks of it has to wait.
    """

    def figure(match: re.Match[str]) -> str:
        chosen = preset(match[1])
        lines = [line for line in chosen.lines if line.name == match[2]]
        finished = [run for line in lines for run in runs_of(chosen, line, runs) if run.finished]
        values = [value for run in finished if (value := run.figure("test_accuracy")) is not None]
        if not values:
            raise UsageError(
                f"{DISCUSSION} names {match[0]}, of which no run is finished; leave it out, or correct its "
                "name"
            )
        return f"{ours(values)}% (n = {len(values)}{f', {chosen.mark}' if chosen.mark else ''})"

    return re.sub(r"\{([a-z0-9-]+): ([^{}]+)\}", figure, text)


def _lead(runs: Sequence[Run]) -> str:
    all_runs = [run for _, run in counted(runs).values()]
    done = sum(run.finished for run in all_runs)
    grades = "\n".join(f"- *{grade}*: {meaning}" for grade, meaning in GRADES.items())
    return LEAD.format(done=done, under_way=len(all_runs) - done, grades=grades)


def _drawn(one: Drawing) -> str:
    picture = f"![{one.title}]({FIGURES}/{one.name}.svg)" if one.chart else "Nothing of it is on record yet."
    return f"### {one.title}\n\n{picture}\n\n{one.caption}"
