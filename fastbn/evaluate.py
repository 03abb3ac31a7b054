"""python -m fastbn.evaluate RUN brings a trained network back from its few KB and tests it.

In a program the module is called: fastbn.evaluate(model, data), see `fastbn.training.prediction.evaluate`."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Sequence
from typing import Any

from fastbn import choices
from fastbn.cli import command
from fastbn.cli.parser import Parser
from fastbn.data.names import DATASETS
from fastbn.errors import UsageError
from fastbn.machine.load_torch import load_torch


class _Callable(types.ModuleType):
    """The module, and what it is called for in a program: fastbn.evaluate(model, data)."""

    def __call__(self, *arguments: Any, **settings: Any) -> dict[str, float]:
        from fastbn.training.prediction import evaluate

        return evaluate(*arguments, **settings)


sys.modules[__name__].__class__ = _Callable


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done; 2 a wrong argument, a damaged file, missing data, or an engine or device that is
    lacking; 130 interrupted."""
    return command.run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    examples = (
        ("runs/resnet14-cifar10-bn-s0", "the test accuracy of a run's network"),
        ("model.safetensors --dataset digits", "that of a file, on this data set"),
        ("RUN --engine stock --limit-test 1000", "by stock PyTorch, on 1000 images"),
    )
    parser = Parser("evaluate", examples, description="Test the network of a run, or of a checkpoint file.")
    parser.add_argument(
        "run",
        help="the folder that python -m fastbn.train wrote, or a .safetensors file that fastbn.save wrote",
    )
    parser.usage = f"{parser.prog} RUN [options]"
    parser.add_argument(
        "--dataset",
        choices=DATASETS,
        metavar="NAME",
        help=f"another than the run's own: {', '.join(DATASETS)}",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set lies now")
    parser.add_argument(
        "--weights", metavar="FILE", help="where the frozen weights' file lies now, if the run began from one"
    )
    parser.add_argument("--engine", default="auto", choices=choices.ENGINES, help="(auto)")
    parser.add_argument("--device", default="auto", choices=choices.DEVICES, help="(auto)")
    parser.add_argument(
        "--limit-test", type=int, metavar="N", help="test on this many images only; as many as the run did"
    )
    command.show(evaluate_run(parser.parse_args(arguments)))
    return 0


def evaluate_run(asked: argparse.Namespace) -> str:
    """Return the line that says what the network reaches."""
    load_torch()
    from fastbn.data.feed import feed
    from fastbn.machine.devices import choose_device
    from fastbn.planning.precision import arithmetic
    from fastbn.run.data import test_set
    from fastbn.training.checkpoint import build, read
    from fastbn.training.evaluation import evaluate

    tensors, header = read(asked.run)
    settings = header.get("config", {})
    if asked.dataset is None and settings.get("dataset") is None:
        raise UsageError(f"{asked.run} does not say what it was trained on; name it with --dataset")
    device = choose_device(asked.device)
    model = build(tensors, header, asked.engine, asked.weights).to(device)
    test = test_set(settings, model.spec.family, asked.run, asked.dataset, asked.data_dir, asked.limit_test)
    if len(test.classes) != model.spec.num_classes:
        classes = f"{len(test.classes)} classes, the network {model.spec.num_classes}"
        raise UsageError(f"{test.name} has {classes}; give the data set that it was trained on")
    with arithmetic("fp32", device):
        means = evaluate(model, feed(test, device)).mean("test")
    accuracy, loss = means["test_accuracy"], means["test_loss"]
    top5 = f" (top-5 {means['test_top5_accuracy']:.4f})" if "test_top5_accuracy" in means else ""
    return (
        f"{model.spec.title} on {test.name}: test accuracy {accuracy:.4f}{top5}, loss {loss:.4f}, "
        f"{len(test):,} images"
    )


if __name__ == "__main__":
    command.leave(main())
