"""A network meets images worse than those it learned, and adapts its γ and β to them without a label:  python
examples/adapt.py

Tent (Wang et al. 2021, Fully Test-Time Adaptation by Entropy Minimization): BatchNorm by each batch's own
statistics, and a step on γ and β down the entropy of the predictions, batch by batch as they come. `reset`
takes it all back."""

import argparse

import torch
from torch import Tensor, nn

import fastbn
from fastbn.data import batch, load


class Tent:
    """Adapts a model to the batches that it is called with. Only γ and β move, so what it remembers to
    take back is some KB."""

    def __init__(self, model: nn.Module, lr: float = 1e-3):
        self.model = fastbn.freeze(model, "bn")
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.before = [p.detach().clone() for p in self.parameters]
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False  # its statistics are left as they were trained
        self.lr = lr
        self.reset()

    def __call__(self, x: Tensor) -> Tensor:
        """The logits of a batch, after which the model has adapted to it."""
        self.model.train()
        logits = self.model(x)
        entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        self.optimizer.zero_grad()
        entropy.backward()
        self.optimizer.step()
        return logits.detach()

    def reset(self) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.before, strict=True):
                parameter.copy_(value)
        self.optimizer = torch.optim.Adam(self.parameters, self.lr)


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
    """In batches of 100, in the order in which they come."""
    found = [
        predict(batch(images, indices, None)).argmax(1) == images.labels[indices]
        for indices in torch.arange(len(images)).split(100)
    ]
    return torch.cat(found).float().mean().item()


@torch.no_grad()
def as_trained(x: Tensor) -> Tensor:
    return model.eval()(x)


@torch.no_grad()
def by_the_batch(x: Tensor) -> Tensor:
    return model.train()(x)


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

clean = data.test.limit(2000)
worse = corrupted(clean)
print(f"{data.why}; ResNet-{asked.depth}")
print(f"clean images, as trained              {accuracy(as_trained, clean):.3f}")
print(f"corrupted, as trained                 {accuracy(as_trained, worse):.3f}")
before = accuracy(as_trained, worse)
tent = Tent(fastbn.fuse(model))
print(f"corrupted, statistics of the batch    {accuracy(by_the_batch, worse):.3f}")
print(f"corrupted, Tent                       {accuracy(tent, worse):.3f}")
print(f"corrupted, Tent, a second time        {accuracy(tent, worse):.3f}")
tent.reset()
print(f"corrupted, as trained, after reset    {accuracy(as_trained, worse):.3f} (before: {before:.3f})")
