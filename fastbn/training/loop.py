"""The course of one network's training: epochs of steps, an evaluation after each, and everything saved that
a resumption needs.

A course asks for its steps and does not take them: who follows it does, and may follow several at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from fastbn.data.feed import Feed, Inputs
from fastbn.errors import Diverged, Stopped
from fastbn.machine import devices
from fastbn.training import affine_statistics
from fastbn.training.distributed import agree
from fastbn.training.evaluation import evaluate
from fastbn.training.progress import Progress
from fastbn.training.saving import Position, Saver
from fastbn.training.schedule import learning_rate
from fastbn.training.signals import StopRequest
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals

# is called with the model and an epoch's metrics; True ends the training
Callback = Callable[[nn.Module, dict[str, Any]], object]


class Turn(NamedTuple):
    """A step that a course asks for, as TrainingStep takes it."""

    inputs: Inputs
    lr: float
    totals: Totals
    images: int
    heard: int | None


class TrainingLoop:
    """A network on its way through the epochs of a resolved recipe. `history` has a dict an epoch; close()
    gives the model back."""

    def __init__(
        self,
        step: TrainingStep,
        held_out: dict[str, Feed],
        bar: Progress,
        was_training: bool,
        saver: Saver | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
        callbacks: Sequence[Callback] = (),
    ):
        self.step, self.recipe, self.history = step, step.recipe, list[dict[str, Any]]()
        self._held_out, self._bar, self._was_training = held_out, bar, was_training
        self._saver, self._log, self._callbacks = saver, log, callbacks

    def turns(self, request: StopRequest) -> Iterator[Turn | None]:
        """Yield every step from where the saver says on, to be taken before the next is asked for. None:
        nothing to take, but a clock is about to start or has just stopped, and other courses should come to
        the same point.

        Raises Diverged; and Stopped, after saving, where the request has a signal.
        """
        step, ranks, device = self.step, self.step.exchange.ranks, self.step.feed.device
        position, self.history = agree.start(step, self._saver)
        energy = devices.EnergyMeter(device)
        while position.epoch < self.recipe.epochs:
            line, speed = yield from self._train(position, request)
            start = time.perf_counter()
            line |= self._evaluate(position, request)
            line |= speed | {
                "evaluation_seconds": time.perf_counter() - start,
                "peak_memory_bytes": devices.peak_memory_bytes(device),
                "planned_memory_bytes": step.plan.memory.peak if step.plan else None,
                "energy_joules": ranks.total(energy.joules(), device),
                "norms": affine_statistics.statistics(step.model),
            }
            self.history.append(line)
            position = Position(position.epoch + 1, 0, Totals.zero(device))
            if self._saver:
                self._saver.epoch(step, position, line)
            if self._log:
                self._log(line)
            self._bar.finish(line)
            # all of them are called, and the first rank's answers count
            ends = any([callback(step.model, line) is True for callback in self._callbacks])
            ended: bool = ranks.told(ends) if self._callbacks else False
            if ended:
                self._bar.say(f"stopped   after epoch {position.epoch}, by a callback")
                return

    def close(self) -> None:
        """Give the model's tensors storage of their own again, and the model its mode."""
        self._bar.close()
        self.step.dissolve()
        self.step.model.train(self._was_training)

    def _train(
        self, position: Position, request: StopRequest
    ) -> Generator[Turn | None, None, tuple[dict[str, Any], dict[str, float]]]:
        """Train one epoch from `position` on, which it moves; return its metrics, and how fast it went."""
        step, recipe, totals = self.step, self.recipe, position.totals
        source, ranks = step.feed, step.exchange.ranks
        steps = -(-len(source) // recipe.batch_size)
        source.begin(recipe.seed, position.epoch)
        training_mode(step.model, recipe.bn_stats)
        already = totals.images
        self._bar.start(position.epoch, len(source), already)
        lr = learning_rate(recipe, position.epoch, max(position.step - 1, 0), steps)
        yield None
        start = time.perf_counter()
        for inputs in source.batches(recipe.batch_size, position.step, ranks.share):
            lr = learning_rate(recipe, position.epoch, position.step, steps)
            images = min(recipe.batch_size, len(source) - position.step * recipe.batch_size)
            yield Turn(inputs, lr, totals, images, request.signal)
            position.step += 1
            self._bar.advance(images, totals)
            heard = request.signal if ranks.count == 1 else step.exchange.stopping()
            if heard is not None:
                self._stop(position, heard, moved=True)
        step.exchange.finish()
        finite = bool(totals.finite)  # the device has caught up when this is known
        seconds = time.perf_counter() - start
        _check(finite, position)
        yield None
        agree.average(step)
        self._bar.testing()
        line = {"epoch": position.epoch, "step": (position.epoch + 1) * steps, "lr": lr} | totals.mean(
            "train"
        )
        rate = (totals.images - already) / seconds if seconds > 0 and totals.images > already else 0.0
        return line, {"images_per_second": rate, "seconds": seconds}

    def _evaluate(self, position: Position, request: StopRequest) -> dict[str, Any]:
        step, line = self.step, dict[str, Any]()
        for name, held in self._held_out.items():

            def pause(n: int) -> None:
                if request.signal is not None and step.exchange.ranks.count == 1:
                    self._stop(position, request.signal, moved=False)

            loss, share = step.custom.loss_of, step.exchange.ranks.share
            figures = evaluate(step.model, held, pause=pause, share=share, loss=loss)
            heard = step.exchange.evaluated(figures, request.signal)
            if heard is not None:
                self._stop(position, heard, moved=False)
            line |= figures.mean(name)
        return line

    def _stop(self, position: Position, heard: int, moved: bool) -> None:
        """Save in the middle of an epoch, and end. moved: whether there were steps since the ranks'
        running statistics were averaged."""
        self.step.exchange.finish()
        _check(bool(position.totals.finite), position)
        if moved:
            agree.average(self.step)
        if self._saver:
            self._saver.save(self.step, position)
        raise Stopped(heard)


def training_mode(model: nn.Module, bn_stats: str) -> None:
    """Put the model in training mode; BatchNorm in evaluation mode where its statistics are frozen."""
    model.train()
    if bn_stats == "frozen":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _check(finite: bool, position: Position) -> None:
    if not finite:
        raise Diverged(
            f"the loss or a gradient stopped being finite in epoch {position.epoch + 1}; lower --lr or add "
            "--warmup-epochs"
        )
