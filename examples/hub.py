"""A pretrained network from a hub learns another task by its BatchNorms and its head, and the patch is put on
a fresh copy:  python examples/hub.py --timm resnet18 --pretrained

    --timm NAME            timm.create_model(NAME, …); pip install timm
    --transformers NAME    a ResNet of transformers, as microsoft/resnet-18; pip install transformers

Without --pretrained the weights are random (of transformers a small ResNet's, whatever the name), nothing is
downloaded, and the accuracy is that of random features. CIFAR-10 where it lies in --data-dir, else the
embedded digits."""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import fastbn
from fastbn.data import batch, load

# ImageNet's, by which both hubs' ResNets were trained
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Logits(nn.Module):
    """A transformers model as training takes it: images in, logits out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


def from_timm(name: str, classes: int, pretrained: bool) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=pretrained, num_classes=classes)


def from_transformers(name: str, classes: int, pretrained: bool) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    if pretrained:  # another number of classes: the head begins anew
        own = {"num_labels": classes, "ignore_mismatched_sizes": True}
        return Logits(ResNetForImageClassification.from_pretrained(name, **own))
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return Logits(ResNetForImageClassification(ResNetConfig(**sizes, num_labels=classes)))


asked = argparse.ArgumentParser()
hub = asked.add_mutually_exclusive_group(required=True)
hub.add_argument("--timm", metavar="NAME")
hub.add_argument("--transformers", metavar="NAME")
asked.add_argument("--pretrained", action="store_true", help="downloads the weights")
asked.add_argument("--data-dir", default="data")
asked.add_argument("--dataset", default="auto")
asked.add_argument("--images", type=int, default=5000)
asked.add_argument("--epochs", type=int, default=3)
asked = asked.parse_args()

data = load(asked.dataset, asked.data_dir)
train, test = (images.limit(asked.images) for images in (data.train, data.test))
for images in (train, test):
    images.mean, images.std = MEAN, STD


def base() -> nn.Module:
    """Return the hub's network, with the same head each time."""
    torch.manual_seed(0)
    make, name = (from_timm, asked.timm) if asked.timm else (from_transformers, asked.transformers)
    try:
        return make(name, len(train.classes), asked.pretrained)
    except ImportError as missing:
        needed = "timm" if asked.timm else "transformers"
        sys.exit(
            f"examples/hub.py needs {needed}, which can't be imported ({missing}); run: pip install {needed}"
        )


model = fastbn.fuse(fastbn.freeze(base(), "bn+output"))
history = fastbn.fit(model, train, test, epochs=asked.epochs, batch_size=64, lr=0.05, schedule="cosine")
print(fastbn.explain(model, (3, *train.images.shape[1:3])))
print(f"{data.why}: accuracy {history[-1]['test_accuracy']:.3f} after {asked.epochs} epochs")

with tempfile.TemporaryDirectory() as folder:
    patch = Path(folder) / "patch.safetensors"
    fastbn.save(model, patch, base=asked.timm or asked.transformers, data=data.name)
    served = fastbn.apply_patch(fastbn.fuse(fastbn.freeze(base(), "none")), patch)
    whole = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    print(f"the patch has {patch.stat().st_size / 1000:.1f} KB, the network {whole / 1000:,.1f}")
x = batch(test, torch.arange(min(64, len(test))), None)
with torch.no_grad():
    same = torch.equal(model.eval()(x), served.eval()(x))
print(f"a fresh copy with the patch gives the same outputs, bit for bit: {same}")
