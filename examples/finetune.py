"""A network learns five classes, is frozen,
and learns five others by its BatchNorm and its head alone:  python
examples/finetune.py

CIFAR-10 where it lies in data/ (or --data-dir), else the embedded digits. A table of accuracies, seconds, and
the KB that the second
task adds: what trains, and the running statistics where they move.
"""

import argparse
import copy

import torch

import fastbn
from fastbn.data import load


def task(images: fastbn.Images, first: int) -> fastbn.Images:
    """Return the five classes from `first` on, as 0 … 4."""
    part = images.take(((images.labels >= first) & (images.labels < first + 5)).nonzero().flatten())
    like = {
        "mean": images.mean,
        "std": images.std,
        "name": images.name,
        "flip": images.flip,
        "pad": images.pad,
    }
    return fastbn.Images(part.images, part.labels - first, images.classes[first : first + 5], **like)


def kilobytes(model: torch.nn.Module, statistics: bool) -> float:
    """Return the size of what the second task changes."""
    changed = [p for p in model.parameters() if p.requires_grad]
    if statistics:
        changed += [b for name, b in model.named_buffers() if "running" in name]
    return sum(t.numel() * t.element_size() for t in changed) / 1000


asked = argparse.ArgumentParser()
asked.add_argument("--data-dir", default="data")
asked.add_argument("--dataset", default="auto")
asked.add_argument("--depth", type=int, default=14)
asked.add_argument("--images", type=int, default=5000, help="of each task")
asked.add_argument("--epochs", type=int, default=5, help="of each task")
asked = asked.parse_args()

data = load(asked.dataset, asked.data_dir)
(train, test), (other_train, other_test) = (
    [task(images, first).limit(asked.images) for images in (data.train, data.test)] for first in (0, 5)
)
recipe = {"epochs": asked.epochs, "batch_size": 64, "lr": 0.05, "schedule": "cosine", "progress": False}

model = fastbn.freeze(fastbn.FastBNOnlyResNet(asked.depth, 5, engine="stock", gamma_init="ones"), "all")
history = fastbn.fit(model, train, test, **recipe)
print(f"{data.why}; ResNet-{asked.depth} on {', '.join(train.classes)}: {history[-1]['test_accuracy']:.3f}")
print(f"then on {', '.join(other_train.classes)}, {len(other_train):,} images, {asked.epochs} epochs:\n")
print(f"{'trains':12}{'statistics':12}{'engine':10}{'accuracy':>9}{'seconds':>9}{'KB':>9}")
for trains, statistics in (
    ("output", "frozen"),
    ("bn+output", "batch"),
    ("bn+output", "frozen"),
    ("all", "batch"),
):
    tuned = copy.deepcopy(model)
    torch.manual_seed(0)
    tuned.fc.reset_parameters()
    fastbn.freeze(tuned, trains)
    engine = "stock" if trains == "all" else "auto"  # what trains convolutions has nothing to fuse
    fastbn.fuse(tuned, engine)
    history = fastbn.fit(tuned, other_train, other_test, bn_stats=statistics, **recipe)
    seconds = sum(line["seconds"] for line in history)
    how = "fused" if engine == "auto" else engine
    row = f"{trains:12}{statistics:12}{how:10}{history[-1]['test_accuracy']:9.3f}"
    print(f"{row}{seconds:9.1f}{kilobytes(tuned, statistics == 'batch'):9.1f}")
