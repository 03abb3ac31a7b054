"""Two networks of random weights play a GAN in which only BatchNorm trains:  python examples/gan.py

A small DCGAN (Radford, Metz, Chintala 2016) on the embedded digits at their own 8×8. The generator upsamples
and convolves, so that both networks run fused; every convolution keeps its random value in one run and trains
in the other. Prints the Fréchet distance between real and drawn digits in the features of a classifier (as
FID, Heusel et al. 2017, with a ResNet-8 that this script trains), and writes the samples as one picture: real
digits, BatchNorm alone, everything trained."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastbn
from fastbn.adapt import AdaBN
from fastbn.data import batch
from fastbn.data.digits import load_digits
from fastbn.page.pictures import grid, png

Z, SIDE, SHOWN = 64, 8, 8  # the latent's length; pixels of a digit; digits in a row of the picture


def unit(inputs: int, outputs: int, stride: int, activation: nn.Module) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation)


class Generator(nn.Module):
    """(N, Z) -> (N, 1, 8, 8) in [-1, 1]. Its last convolution has a BatchNorm too, or nothing in a frozen
    network could choose how dark the paper is."""

    def __init__(self, width: int):
        super().__init__()
        self.channels = 4 * width
        first = nn.Conv2d(Z, 16 * self.channels, 1, bias=False)
        self.start = nn.Sequential(first, nn.BatchNorm2d(16 * self.channels), nn.ReLU())
        self.body = nn.Sequential(
            unit(4 * width, 2 * width, 1, nn.ReLU()), unit(2 * width, width, 1, nn.ReLU())
        )
        self.paint = unit(width, 1, 1, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        x = self.start(z[:, :, None, None]).view(-1, self.channels, 4, 4)
        return self.paint(self.body(F.interpolate(x, scale_factor=2.0)))


class Discriminator(nn.Module):
    """(N, 1, 8, 8) -> (N,) logits of being real."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            unit(1, width, 1, nn.LeakyReLU(0.2)),
            unit(width, 2 * width, 2, nn.LeakyReLU(0.2)),
            unit(2 * width, 4 * width, 2, nn.LeakyReLU(0.2)),
        )
        self.judge = nn.Linear(4 * width * 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.judge(self.body(x).flatten(1)).squeeze(1)


def play(real: Tensor, trains: str, lr: float, epochs: int, width: int, seed: int) -> tuple[Generator, int]:
    """Return a generator after its game with a discriminator, by the non-saturating loss, and the count of
    what trained."""
    torch.manual_seed(seed)
    generator, discriminator = Generator(width), Discriminator(width)
    optimizers = []
    for network in (generator, discriminator):
        fastbn.freeze(network, trains)
        fastbn.fuse(network, "auto" if trains == "bn" else "stock")
        own = [p for p in network.parameters() if p.requires_grad]
        optimizers.append(torch.optim.Adam(own, lr, betas=(0.5, 0.999)))
    for _ in range(epochs):
        for x in real[torch.randperm(len(real))].split(64)[:-1]:
            for network, optimizer in zip((discriminator, generator), reversed(optimizers), strict=True):
                drawn = generator(torch.randn(len(x), Z))
                if network is discriminator:
                    loss = (
                        F.softplus(-discriminator(x)).mean()
                        + F.softplus(discriminator(drawn.detach())).mean()
                    )
                else:
                    loss = F.softplus(-discriminator(drawn)).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    trained = [p for network in (generator, discriminator) for p in network.parameters() if p.requires_grad]
    return generator, sum(p.numel() for p in trained)


def classifier(images: fastbn.Images) -> nn.Module:
    model = fastbn.FastBNOnlyResNet(8, engine="stock", gamma_init="ones")
    recipe = {"epochs": 15, "batch_size": 32, "lr": 0.05, "schedule": "cosine", "progress": False}
    fastbn.fit(fastbn.freeze(model, "all"), images, **recipe)
    return model.eval()


@torch.no_grad()
def features(model: nn.Module, images: fastbn.Images) -> Tensor:
    """Return (N, 64) float64: what the classifier's last layer reads."""
    found: list[Tensor] = []
    hook = model.fc.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    model(batch(images, torch.arange(len(images)), None))
    hook.remove()
    return found[0].double()


def frechet(a: Tensor, b: Tensor) -> float:
    """|μ_a − μ_b|² + tr(C_a + C_b − 2·(C_a·C_b)^½) of two sets of features (N, D)."""
    c_a, c_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(c_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ c_b @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + c_a.trace() + c_b.trace() - 2 * cross).item()


def as_images(x: Tensor) -> fastbn.Images:
    """Digits (N, 1, 8, 8) in [-1, 1] as a set, its labels of no meaning."""
    pixels = ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).repeat(1, 1, 1, 3).contiguous()
    return fastbn.Images(
        pixels, torch.zeros(len(x), dtype=torch.int64), [str(k) for k in range(10)], flip=False
    )


asked = argparse.ArgumentParser()
asked.add_argument("--epochs", type=int, default=60)
asked.add_argument("--width", type=int, default=24, help="channels of the generator's last layer")
asked.add_argument("--images", type=int, help="real digits; all 1,437")
asked.add_argument("--seed", type=int, default=0)
asked.add_argument("--picture", type=Path, default=Path("gan.png"))
asked.add_argument("--out", type=Path, help="writes the rows as JSON too")
asked = asked.parse_args()

train, test = load_digits()
train = train.limit(asked.images)
real, held = (F.avg_pool2d((s.images[..., 0].float() / 127.5 - 1)[:, None], 4) for s in (train, test))
labelled = as_images(real)
labelled.labels = train.labels
judge = classifier(labelled)
seen = features(judge, labelled)

sets, rows = {"real, held out": held}, []
noise = torch.rand(2 * len(held), 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
for trains, lr, name in (("bn", 1e-2, "BatchNorm alone trained"), ("all", 1e-3, "everything trained")):
    start = time.perf_counter()
    generator, trained = play(real, trains, lr, asked.epochs, asked.width, asked.seed)
    rows.append({"samples": name, "trained": trained, "lr": lr, "seconds": time.perf_counter() - start})
    z = torch.randn(2 * len(held), Z, generator=torch.Generator().manual_seed(1))
    sets[name] = AdaBN(generator)(z)  # by the statistics of the batch, which the discriminator saw
sets["noise"] = 2 * noise - 1
distances = {name: frechet(features(judge, as_images(x)), seen) for name, x in sets.items()}
rows = [{"samples": name, **next((r for r in rows if r["samples"] == name), {})} for name in sets]
print(f"{'samples':26}{'Fréchet distance':>18}{'trained':>10}{'seconds':>9}")
for row in rows:
    row["distance"] = distances[row["samples"]]
    trained = f"{row['trained']:10,}{row['seconds']:9.1f}" if "trained" in row else ""
    print(f"{row['samples']:26}{row['distance']:18.2f}{trained}")

blocks = []
for x in list(sets.values())[:3]:
    block = grid(as_images(x[: SHOWN * SHOWN]).images.numpy(), SHOWN)
    blocks += [block, np.zeros((len(block), 6, 4), np.uint8)]
picture = np.concatenate(blocks[:-1], 1).repeat(3, 0).repeat(3, 1)
asked.picture.write_bytes(png(picture))
print(f"{asked.picture}: {', '.join(list(sets)[:3])}, from the left")
if asked.out:
    settings = {name: getattr(asked, name) for name in ("epochs", "width", "images", "seed")}
    asked.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
