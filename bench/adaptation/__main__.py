"""python -m bench.adaptation RUN: what a trained network errs on corrupted images, as trained and adapted.

RUN is a run's folder, of a network that was trained on clean images. α and Tent's learning rate are chosen on
corrupted training images, then every corruption of the test set is met once, in batches, from the trained
state on. Writes bench/results/adaptation-<network>-<date>.json and the tables of docs/adaptation.md. With
--seconds the time of a batch alone, stock and fused in turn: adaptation-seconds-<network>-<date>.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastbn
from bench.adaptation.corruptions import KINDS, SEVERITIES, corrupted
from bench.adaptation.table import BY_SIZE, ENGINES, NAMES, write
from bench.records.conditions import RESULTS, ROOT
from bench.records.rows import Row, new
from bench.records.runs import ended
from bench.suite.clock import interleaved
from fastbn.adapt import AdaBN, AlphaBN, Tent
from fastbn.data import batch, load
from fastbn.training import checked_file
from fastbn.training.checkpoint import CHECKPOINT

BATCH, SIZES = 200, (200, 32, 8)  # Tent's for CIFAR-10-C; down to those whose statistics are poor
FEW = 2000  # images where no method learns from one batch for the next
TRAIN = 50_000  # CIFAR-10's images
ALPHAS, RATES = (0.1, 0.3, 0.5, 0.7), (3e-4, 1e-3, 3e-3)
CPU = torch.device("cpu")
KEPT = ("depth", "width", "dataset", "train", "gamma_init", "epochs", "batch_size", "optimizer", "lr")
KEPT += ("nesterov", "schedule", "warmup_epochs", "weight_decay", "seed")

Predict = Callable[[Tensor], Tensor]


def described(config: dict[str, Any]) -> dict[str, Any]:
    """Return how a network was trained; `before`: how the one whose weights it started from was, how far."""
    found: dict[str, Any] = {name: config[name] for name in KEPT}
    if config["weights"]:
        header = checked_file.read(Path(config["weights"]) / CHECKPOINT)[1]
        place, size = header["position"], header["config"]["batch_size"]
        epochs = place["epoch"] + place["step"] / -(-TRAIN // size)
        found["before"] = described(header["config"]) | {"trained_epochs": round(epochs, 1)}
    return found


def error(predict: Predict, images: fastbn.Images, size: int = BATCH) -> float:
    """Return the share of wrong predictions, in batches in the set's order."""
    parts = torch.arange(len(images)).split(size)
    wrong = [predict(batch(images, part, None)).argmax(1) != images.labels[part] for part in parts]
    return torch.cat(wrong).double().mean().item()


def few(images: fastbn.Images) -> fastbn.Images:
    return images.take(torch.arange(min(FEW, len(images))))


def as_trained(model: nn.Module) -> Predict:
    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        return model.eval()(x)

    return predict


def ways(model: nn.Module, alpha: float, lr: float) -> dict[str, Any]:
    """Return the methods by their names in NAMES."""
    methods = as_trained(model), AdaBN(model), AlphaBN(model, alpha), Tent(model, lr)
    return dict(zip(NAMES, methods, strict=True))


def chosen(model: nn.Module, train: fastbn.Images) -> dict[str, Any]:
    """Return α and Tent's learning rate of the least mean error over the corruptions of severity 2."""
    worse = [corrupted(train, kind, 2, seed=1) for kind in KINDS]
    alphas = {a: statistics.fmean(error(AlphaBN(model, a), few(images)) for images in worse) for a in ALPHAS}
    rates = {}
    for lr in RATES:
        tent, errors = Tent(model, lr), []
        for images in worse:
            errors.append(error(tent, images))
            tent.reset()
        rates[lr] = statistics.fmean(errors)
    best = {"alpha": min(alphas, key=alphas.__getitem__), "lr": min(rates, key=rates.__getitem__)}
    return best | {"tried_alpha": alphas, "tried_lr": rates}


def errors(model: nn.Module, test: fastbn.Images, alpha: float, lr: float) -> Iterator[Row]:
    """Yield a row per corruption and method, Tent from the trained state on each time, and by batch size."""
    methods = ways(model, alpha, lr)
    cases = [("clean", test), *((f"{kind} {s}", None) for kind in KINDS for s in SEVERITIES)]
    for case, images in cases:
        kind, _, severity = case.partition(" ")
        images = images or corrupted(test, kind, int(severity))
        for name, way in methods.items():
            yield _row(case, name, BATCH, images=len(images), accuracy=1 - error(way, images))
        methods["tent"].reset()
        if severity == "2":
            for size in SIZES:
                for name in BY_SIZE:
                    found = 1 - error(methods[name], few(images), size)
                    yield _row(f"{case}, batch {size}", name, size, images=len(few(images)), accuracy=found)


def _row(case: str, method: str, size: int, images: int, **found: Any) -> Row:
    who = {"provider": method, "trains": "bn" if method == "tent" else ""}
    return Row(level="adaptation", case=case, **who, batch_size=size, more={"images": images}, **found)


def timed(run: Path, test: fastbn.Images, most_seconds: float) -> list[Row]:
    """Return the seconds of a batch by each method, stock and fused in turn."""
    x, calls = batch(test, torch.arange(min(BATCH, len(test))), None), {}
    for named, engine in ENGINES.items():
        model = fastbn.fuse(fastbn.freeze(fastbn.load(run), "bn"), engine)
        for name, way in ways(model.to(memory_format=torch.channels_last), 0.5, 1e-3).items():
            calls[f"{name} {named}"] = lambda way=way: way(x)
    for call in calls.values():
        call()
        call()
    samples = interleaved(calls, 1000, CPU, most_seconds=most_seconds)
    case = f"an image of {len(x)}"
    rows = [_row(case, name, len(x), images=len(x)).time(found) for name, found in samples.items()]
    for row in rows:
        print(f"{row.provider:24}{1e6 / (row.images_per_second or 1.0):8.1f} µs an image")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.adaptation", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run on clean images")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--images", type=int, default=10_000, help="of the test set, and to choose on")
    parser.add_argument("--seconds", action="store_true", help="the time of a batch alone")
    parser.add_argument("--most-seconds", type=float, default=40, help="of that measurement")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the records")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "adaptation.md")
    asked = parser.parse_args()
    record = new()
    config, summary = ended(asked.run)
    record.conditions["network"] = described(config) | {"test_accuracy": summary["test_accuracy"]}
    data = load(config["dataset"], asked.data_dir)
    if asked.seconds:
        record.rows = timed(asked.run, data.test, asked.most_seconds)
    else:
        model = fastbn.fuse(fastbn.freeze(fastbn.load(asked.run), "bn"))
        settings = record.conditions["settings"] = chosen(model, data.train.limit(asked.images))
        for row in errors(model, data.test.limit(asked.images), settings["alpha"], settings["lr"]):
            record.rows.append(row)
            print(f"{row.case:24}{NAMES[row.provider]:12}{1 - (row.accuracy or 0.0):8.4f}", flush=True)
    part = "-seconds" if asked.seconds else ""
    print(record.save(f"adaptation{part}-resnet{config['depth']}-{config['dataset']}", asked.results))
    write(asked.page, asked.results)


if __name__ == "__main__":
    main()
