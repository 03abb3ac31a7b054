"""python -m fastbn.experiments.replicas ARGUMENTS -- ARGUMENTS …: runs of the trainer, side by side in one
process.

`run NAME --replicas K` starts it. Each run has its arguments, --out among them, and in that folder all that
it would leave there alone; what it says is in its log. They differ in seed, learning rate and what they start
from; the data set is read once."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fastbn.cli import command
from fastbn.cli.command import say
from fastbn.errors import Diverged, MachineError, Stopped, UsageError
from fastbn.experiments.launch import log_of
from fastbn.settings.arguments import parse
from fastbn.settings.config import Config

if TYPE_CHECKING:
    from fastbn.run.run import TrainingRun
    from fastbn.training.loop import TrainingLoop


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return an exit code as the trainer's; where runs ended differently that of the last
    failure. One that fails does not end the others."""
    return command.run(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(words: list[str]) -> int:
    configs = parsed(words)
    with contextlib.ExitStack() as stack:
        return train(configs, [stack.enter_context(log_of(Path(config.out or ""))) for config in configs])


def parsed(words: Sequence[str]) -> list[Config]:
    """Return the settings of each run. Raises UsageError where they differ in more than they may."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "--":
            parts.append([])
        else:
            parts[-1].append(word)
    # --resume adds what was saved
    asked = [_parsed([word for word in part if word != "--resume"]) for part in parts]
    alike = {dataclasses.replace(config, seed=0, lr=None, weights=None, out=None) for config in asked}
    if len(alike) > 1 or len({config.out for config in asked} - {None}) < len(asked):
        raise UsageError(
            "replicas differ in --seed, --lr and --weights alone, and each has an --out of its own; run "
            "others by themselves"
        )
    one = asked[0]
    alone = {
        "--batch-size auto": one.batch_size == "auto",
        "--track": one.track,
        "--dataset imagenet": one.dataset == "imagenet",
    }
    for flag in (flag for flag, given in alone.items() if given):
        raise UsageError(f"{flag} is for a run that has the process to itself; leave --replicas out")
    return [_parsed(part) for part in parts]


def _parsed(words: Sequence[str]) -> Config:
    return parse(words)


def train(configs: Sequence[Config], logs: Sequence[TextIO]) -> int:
    """Train them all and return the exit code."""
    from fastbn.machine.devices import choose_device
    from fastbn.run.build import spec_of
    from fastbn.run.data import data
    from fastbn.run.run import ready
    from fastbn.trainable import trainable
    from fastbn.training.distributed.ranks import ALONE
    from fastbn.training.progress import Progress
    from fastbn.training.replicas import side_by_side

    courses: list[TrainingLoop] = []
    runs: list[tuple[TrainingRun, TextIO]] = []  # of the courses
    open_logs, code = list(logs), 0

    def failed(error: UsageError | MachineError | Diverged | Stopped, log: TextIO) -> None:
        nonlocal code
        known = command.ended(error)
        assert known is not None
        text, code = known
        say(f"fastbn: {text}", log)
        open_logs.remove(log)

    def done(run: TrainingRun, history: list[dict[str, object]], log: TextIO) -> None:
        say(run.finished(history), log)
        open_logs.remove(log)

    def ended(k: int, error: UsageError | MachineError | Diverged | None) -> None:
        run, log = runs[k]
        if isinstance(error, Diverged) and run.folder is not None:
            failed(Diverged(f"{error}; {run.folder.kept()}"), log)
        elif error is not None:
            failed(error, log)
        else:
            done(run, courses[k].history, log)

    with contextlib.ExitStack() as stack:
        try:
            loaded = data(configs[0], spec_of(configs[0]).family)
            device = choose_device(configs[0].device)
            loaded = dataclasses.replace(loaded, train=loaded.train.to(device), test=loaded.test.to(device))
            for config, log in zip(configs, logs, strict=True):
                bar = Progress(0, True, file=log)
                try:
                    run = ready(config, ALONE, stack, bar, loaded, len(configs))
                    if not trainable(run.model):
                        done(run, run.measured(), log)
                        continue
                    course = run.loop(bar, ALONE)
                except (UsageError, MachineError) as error:
                    failed(error, log)
                    continue
                stack.callback(course.close)
                courses.append(course)
                runs.append((run, log))
            if courses:
                side_by_side(courses, ended)
        except (UsageError, MachineError, Stopped) as error:  # of all that are left
            for log in list(open_logs):
                failed(error, log)
    return code


if __name__ == "__main__":
    command.leave(main())
