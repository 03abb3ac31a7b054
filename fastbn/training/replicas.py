"""Replicas: independent networks that one process trains side by side, each to the bits that it would have
alone.

At the paper's batch of 128 the later stages of a CIFAR ResNet launch fewer programs than a GPU has
multiprocessors; what one network leaves idle another can use. So on CUDA each replica has a stream: all that
is done for it, its steps (a CUDA graph each, where they are captured), evaluations and checkpoints, is queued
there in the order in which it would be done for it alone, and the GPU makes none wait for another; the host
gives out a step of each at a time. Elsewhere they take turns, which is no faster than one after the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fastbn.choices import unknown_setting
from fastbn.data.images import Images
from fastbn.errors import Diverged, MachineError, Stopped, UsageError
from fastbn.planning import precision
from fastbn.recipe import Recipe
from fastbn.training.fit import feeds, prepared, resolve
from fastbn.training.loop import TrainingLoop
from fastbn.training.progress import Progress
from fastbn.training.signals import stop_request

# which replica ended, and by what error, if by one
Ended = Callable[[int, Diverged | UsageError | MachineError | None], None]


def fit_replicas(
    models: Sequence[nn.Module],
    train: Images,
    test: Images | None = None,
    val: Images | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> list[list[dict[str, Any]] | Diverged]:
    """Train several networks at once as `fastbn.fit` trains each, bit for bit; return their histories, in
    the place of one that diverged its error.

    models: all on one device; they may differ in everything else. The images are shared.
    settings: as of `fit`; a list has a value for each model. They may differ in all but the precision.

        histories = fastbn.fit_replicas([first, second], train, test, epochs=15, seed=[0, 1], lr=[0.1, 0.2])

    On a GPU they run side by side, on a CPU in turns. images_per_second and seconds are of a replica while
    the others train too; the peak of memory and the joules are the whole process's. Raises as `fit`, and
    UsageError where there is not a model a value."""
    models = list(models)
    device = _device(models)
    train = _images(train).to(device)
    test, val = (images if images is None else _images(images).to(device) for images in (test, val))
    histories: list[Any] = [None] * len(models)

    def ended(k: int, error: Diverged | UsageError | MachineError | None) -> None:
        if isinstance(error, (UsageError, MachineError)):
            raise error
        # whose frames would keep the networks' memory
        histories[k] = error.with_traceback(None) if error else courses[k].history

    with contextlib.ExitStack() as stack:
        courses: list[TrainingLoop] = []
        for k, (model, recipe) in enumerate(zip(models, _recipes(settings, len(models)), strict=True)):
            bar = Progress(0, progress, f"replica {k + 1}/{len(models)}  ")
            source, held_out = feeds(model, train, test, val)
            resolved = resolve(recipe, model, source)
            courses.append(prepared(model, source, held_out, resolved, bar, replicas=len(models)))
            stack.callback(courses[k].close)
        side_by_side(courses, ended)
    return histories


def side_by_side(courses: Sequence[TrainingLoop], ended: Ended) -> None:
    """Follow courses of one device and precision, a step of each at a time, and tell of each as it ends:
    well, or by an error of its own. The others go on. Raises Stopped, after all have saved, where a signal
    came."""
    device, kinds = courses[0].step.feed.device, {course.recipe.precision for course in courses}
    if device.type == "xla":
        raise UsageError(
            "replicas are for CUDA, or in turns for a CPU, and these are on XLA; train them one after the "
            "other"
        )
    if len(kinds) > 1:
        raise UsageError(
            f"replicas share one precision, got {', '.join(sorted(kinds))}; train those of each precision "
            "by themselves"
        )
    stopped: Stopped | None = None
    with (
        precision.arithmetic(kinds.pop(), device),
        lanes(device, len(courses)) as places,
        stop_request() as request,
    ):
        ways = {k: course.turns(request) for k, course in enumerate(courses)}
        while ways:
            for k, way in list(ways.items()):
                try:
                    with places[k]:
                        turn = next(way)
                        if turn is not None:
                            courses[k].step(*turn)
                    continue
                except StopIteration:
                    ended(k, None)
                except Stopped as error:
                    stopped = error
                except (Diverged, UsageError, MachineError) as error:
                    ended(k, error)
                del ways[k]
    if stopped is not None:
        raise stopped


@contextlib.contextmanager
def lanes(device: torch.device, count: int) -> Iterator[list[contextlib.AbstractContextManager[Any]]]:
    """Yield where each replica's work is queued: on CUDA a stream of its own, which begins after what was
    queued before, and is waited for."""
    if device.type != "cuda":
        yield [contextlib.nullcontext()] * count
        return
    here, streams = torch.cuda.current_stream(device), [torch.cuda.Stream(device) for _ in range(count)]
    for stream in streams:
        stream.wait_stream(here)
    try:
        yield [torch.cuda.stream(stream) for stream in streams]
    finally:
        for stream in streams:
            here.wait_stream(stream)


def _recipes(settings: dict[str, Any], count: int) -> list[Recipe]:
    """Return a recipe for each of so many models."""
    known = {field.name for field in dataclasses.fields(Recipe)}
    if unknown := [name for name in settings if name not in known]:
        raise unknown_setting("fit_replicas", unknown, sorted(known))
    for name, value in settings.items():
        if isinstance(value, list) and len(value) != count:
            raise UsageError(
                f"{name} has {len(value)} values for {count} models; give one for each, or one for all that "
                "is no list"
            )
    settings_each = [
        {name: value[k] if isinstance(value, list) else value for name, value in settings.items()}
        for k in range(count)
    ]
    recipes = [Recipe(**one) for one in settings_each]
    if any(recipe.batch_size == "auto" for recipe in recipes):
        raise UsageError(
            "batch_size auto is measured with the device to itself, which replicas have not; give a number"
        )
    return recipes


def _device(models: Sequence[nn.Module]) -> torch.device:
    """Return the one device of them all."""
    if len({id(model) for model in models}) < max(1, len(models)):
        raise UsageError(
            f"replicas are networks of their own, got {len(models)} models, or one of them twice; give each "
            "once"
        )
    devices = {next(model.parameters()).device for model in models}
    if len(devices) > 1:
        raise UsageError(
            f"replicas train on one device, got models on {', '.join(sorted(map(str, devices)))}; bring "
            "them together"
        )
    return devices.pop()


def _images(images: object) -> Images:
    if not isinstance(images, Images):
        raise UsageError(
            f"replicas share images in memory, fastbn.Images, got {type(images).__name__}; train these one "
            "after the other"
        )
    return images
