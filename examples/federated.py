"""A server's network meets five clients, each with images of its own kind, who send only γ and β:
python examples/federated.py

The server trains a ResNet on half of the embedded digits, as scanned. Every client has its share of the other
half, seen by another scanner, trains for a while, and sends what it changed; the server sends back the mean,
weighted by the clients' images. In one process, beside each other:

    everything, FedAvg         McMahan et al. 2017: all weights and BatchNorm's statistics
    all but BatchNorm, FedBN   Li et al. 2021: BatchNorm stays each client's own
    BatchNorm, FedAvg          γ, β and the statistics; nothing else trains
    γ and β                    the statistics stay each client's own, as in Andreux et al. 2020
    nothing                    each client trains γ and β alone

Accuracy is of each client's network on the test images as its scanner sees them.
"""

import argparse
import copy
import json
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastbn
from fastbn.data.digits import load_digits


def blurred(x: Tensor) -> Tensor:
    return F.avg_pool2d(x.permute(0, 3, 1, 2), 7, 1, 3).permute(0, 2, 3, 1)


SHIFTS = {  # of pixels 0 … 255, (N, H, W, 3)
    "as scanned": lambda x: x,
    "inverted": lambda x: 255 - x,
    "faint": lambda x: 0.2 * x + 60,
    "noisy": lambda x: x + 80 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
    "blurred": blurred,
}
# name: what trains, and whether the network's weights, γ and β, and the statistics are sent
WAYS = {
    "everything, FedAvg": ("all", True, True, True),
    "all but BatchNorm, FedBN": ("all", True, False, False),
    "BatchNorm, FedAvg": ("bn", False, True, True),
    "γ and β": ("bn", False, True, False),
    "nothing": ("bn", False, False, False),
}


def shifted(images: fastbn.Images, how: str) -> fastbn.Images:
    pixels = SHIFTS[how](images.images.float()).clamp(0, 255).to(torch.uint8).contiguous()
    like = {"mean": images.mean, "std": images.std, "flip": images.flip, "pad": images.pad}
    return fastbn.Images(pixels, images.labels, images.classes, name=f"digits, {how}", **like)


def sent(model: nn.Module, weights: bool, affine: bool, running: bool) -> dict[str, Tensor]:
    """Return the tensors that a client sends, by name; the server sends as many back."""
    norms = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    found = {}
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        of_norm, kind = name.rpartition(".")[0] in norms, name.rpartition(".")[2]
        chosen = (running and "running" in kind) if "running" in kind else affine if of_norm else weights
        if chosen and t.is_floating_point():
            found[name] = t
    return found


@torch.no_grad()
def averaged(clients: list[nn.Module], shares: list[float], what: tuple[bool, bool, bool]) -> int:
    """Give every client the weighted mean of what all send; the bytes that each sends."""
    parts = [sent(client, *what) for client in clients]
    for name in parts[0]:
        mean = sum(share * part[name] for share, part in zip(shares, parts, strict=True))
        for part in parts:
            part[name].copy_(mean)
    return sum(t.numel() * t.element_size() for t in parts[0].values())


def served(depth: int, images: fastbn.Images, epochs: int, seed: int) -> nn.Module:
    """Return the server's network, trained on its own images."""
    model = fastbn.FastBNOnlyResNet(depth, seed=seed, engine="stock", gamma_init="ones")
    recipe = {"epochs": epochs, "batch_size": 32, "lr": 0.05, "schedule": "cosine", "progress": False}
    fastbn.fit(fastbn.freeze(model, "all"), images, seed=seed, **recipe)
    return model


def accuracy(model: nn.Module, images: fastbn.Images) -> float:
    with torch.no_grad():
        logits = model.eval()(fastbn.data.batch(images, torch.arange(len(images)), None))
    return (logits.argmax(1) == images.labels).double().mean().item()


def federated(
    way: str, model: nn.Module, own: list[fastbn.Images], rounds: int, seed: int
) -> tuple[list, int]:
    """Return the clients' networks after the last round, and the bytes that each sends in a round."""
    trains, *what = WAYS[way]
    clients = [copy.deepcopy(model) for _ in own]
    for client in clients:
        fastbn.freeze(client, trains)
        fastbn.fuse(
            client, "stock" if trains == "all" else "auto"
        )  # what trains convolutions has nothing to fuse
    recipe = {
        "epochs": 1,
        "batch_size": 16,
        "lr": 0.05 if trains == "bn" else 0.02,
        "schedule": "constant",
        "progress": False,
    }
    size, shares = 0, [len(images) / sum(map(len, own)) for images in own]
    for turn in range(rounds):
        for client, images in zip(clients, own, strict=True):
            fastbn.fit(client, images, seed=seed * rounds + turn, **recipe)
        size = averaged(clients, shares, what)
    return clients, size


asked = argparse.ArgumentParser()
asked.add_argument("--rounds", type=int, default=4)
asked.add_argument("--epochs", type=int, default=8, help="of the server's training")
asked.add_argument("--depth", type=int, default=8)
asked.add_argument("--images", type=int, help="of the server and the clients together; all 1,437")
asked.add_argument("--seeds", type=int, default=2)
asked.add_argument("--out", type=Path, help="writes the rows as JSON too")
asked = asked.parse_args()

train, test = load_digits()
train = train.limit(asked.images)
held = [shifted(test, how) for how in SHIFTS]
rows = [{"sent": way, "bytes": 0, "runs": []} for way in ("the server's network", *WAYS)]
for seed in range(asked.seeds):
    servers, others = train.split(len(train) // 2, seed)
    parts = torch.arange(len(others)).tensor_split(len(SHIFTS))
    own = [shifted(others.take(part), how) for part, how in zip(parts, SHIFTS, strict=True)]
    model = served(asked.depth, servers, asked.epochs, seed)
    for row in rows:
        clients = [model] * len(own)
        if row["sent"] in WAYS:
            clients, row["bytes"] = federated(row["sent"], model, own, asked.rounds, seed)
        found = [accuracy(client, images) for client, images in zip(clients, held, strict=True)]
        row["runs"].append(dict(zip(SHIFTS, found, strict=True)))

print(f"ResNet-{asked.depth}, digits, {len(SHIFTS)} clients: {', '.join(SHIFTS)}; {asked.rounds} rounds\n")
print(f"{'sent':26}{'KB a round':>12}{'accuracy':>16}{'worst client':>14}")
for row in rows:
    means = [statistics.fmean(run.values()) for run in row["runs"]]
    spread = statistics.stdev(means) if len(means) > 1 else 0.0
    worst = statistics.fmean(min(run.values()) for run in row["runs"])
    size, mean = row["bytes"] / 1000, statistics.fmean(means)
    print(f"{row['sent']:26}{size:12.1f}{mean:9.3f} ± {spread:.3f}{worst:14.3f}")
if asked.out:
    settings = {name: getattr(asked, name) for name in ("rounds", "epochs", "depth", "images", "seeds")}
    asked.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
