"""A network meets images worse than those it learned, and adapts its BatchNorms to them without a label:
python examples/adapt.py

As trained, and by each method of fastbn.adapt, batch by batch as they come; `reset` takes it all back.
docs/adaptation.md has what the methods gain on a whole test set."""

import argparse

import torch

import fastbn
from fastbn.adapt import AdaBN, AlphaBN, Tent
from fastbn.data import batch, load


def corrupted(images: fastbn.Images) -> fastbn.Images:
    """Half the contrast, darker, and noise."""
    noise = 30 * torch.randn(images.images.shape, generator=torch.Generator().manual_seed(0))
    worse = (images.images.float() * 0.5 + noise).clamp(0, 255).to(torch.uint8)
    return fastbn.Images(
        worse,
        images.labels,
        images.classes,
        mean=images.mean,
        std=images.std,
        name=f"{images.name}, corrupted",
    )


def accuracy(predict, images: fastbn.Images) -> float:
    """Return the accuracy in batches of 100, in the order in which they come."""
    found = [
        predict(batch(images, indices, None)).argmax(1) == images.labels[indices]
        for indices in torch.arange(len(images)).split(100)
    ]
    return torch.cat(found).float().mean().item()


asked = argparse.ArgumentParser()
asked.add_argument("--data-dir", default="data")
asked.add_argument("--dataset", default="auto")
asked.add_argument("--depth", type=int, default=14)
asked.add_argument("--images", type=int, default=10_000, help="to train on")
asked.add_argument("--epochs", type=int, default=5)
asked = asked.parse_args()

data = load(asked.dataset, asked.data_dir)
model = fastbn.freeze(
    fastbn.FastBNOnlyResNet(asked.depth, len(data.train.classes), engine="stock", gamma_init="ones"), "all"
)
recipe = {"epochs": asked.epochs, "batch_size": 64, "lr": 0.05, "schedule": "cosine", "progress": False}
fastbn.fit(model, data.train.limit(asked.images), None, **recipe)
fastbn.fuse(fastbn.freeze(model, "bn"))


@torch.no_grad()
def as_trained(x: torch.Tensor) -> torch.Tensor:
    return model.eval()(x)


clean = data.test.limit(2000)
worse = corrupted(clean)
before = accuracy(as_trained, worse)
print(f"{data.why}; ResNet-{asked.depth}")
print(f"clean images, as trained              {accuracy(as_trained, clean):.3f}")
print(f"corrupted, as trained                 {before:.3f}")
print(f"corrupted, AdaBN                      {accuracy(AdaBN(model), worse):.3f}")
print(f"corrupted, α-BN, α = 0.3              {accuracy(AlphaBN(model, 0.3), worse):.3f}")
tent = Tent(model)
print(f"corrupted, Tent                       {accuracy(tent, worse):.3f}")
print(f"corrupted, Tent, a second time        {accuracy(tent, worse):.3f}")
tent.reset()
print(f"corrupted, as trained, after reset    {accuracy(as_trained, worse):.3f} (before: {before:.3f})")
