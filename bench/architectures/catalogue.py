"""The networks that are looked at, randomly initialised, and their images: torchvision's, timm's and ours.

Three of each family and more: their own libraries build them, so that what is seen is what users have."""

from __future__ import annotations

import dataclasses
import importlib

import torch
from torch import nn

from fastbn import freeze
from fastbn.errors import MachineError, UsageError

LIBRARIES = {"torchvision": "torchvision.models", "timm": "timm", "fastbn": "bench.architectures.wide"}
OPTIONS = {"googlenet": {"aux_logits": False, "init_weights": True}}  # one output; without a warning


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network of a library, and the height and width of the images that it is made for."""

    library: str  # of LIBRARIES
    name: str
    size: int = 224

    @property
    def key(self) -> str:
        return f"{self.library}-{self.name}"

    def build(self) -> nn.Module:
        """Return the network in train mode, the same bits each time, all but BatchNorm's γ and β frozen.

        Dropout and stochastic depth are left out: by them no two forwards would be comparable.

        Raises MachineError where the library is not installed."""
        try:
            library = importlib.import_module(LIBRARIES[self.library])
        except (ImportError, RuntimeError) as error:
            raise MachineError(
                f"{self.key}: {self.library} can't be imported ({error}); install it"
            ) from None
        torch.manual_seed(0)
        if self.library == "timm":
            model = library.create_model(self.name, pretrained=False)
        else:
            model = getattr(library, self.name)(weights=None, **OPTIONS.get(self.name, {}))
        for module in model.modules():
            if "drop" in type(module).__name__.lower() or type(module).__name__ == "StochasticDepth":
                module.p = module.drop_prob = 0.0
            if hasattr(module, "drop_rate"):  # of a dropout that is a function
                module.drop_rate = 0.0
        return freeze(model.train(), "bn")

    def images(self, batch: int, size: int | None = None) -> torch.Tensor:
        """Return images (N, 3, H, W), the same each time."""
        draw = torch.Generator().manual_seed(0)
        return torch.randn(batch, 3, size or self.size, size or self.size, generator=draw)


def _of(library: str, names: str, size: int = 224) -> tuple[Architecture, ...]:
    return tuple(Architecture(library, name, size) for name in names.split())


ARCHITECTURES = (
    *_of("torchvision", "resnet18 resnet50 wide_resnet50_2 resnext50_32x4d vgg11_bn vgg16_bn googlenet"),
    *_of("torchvision", "mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet1_0 shufflenet_v2_x1_0"),
    *_of("torchvision", "efficientnet_b0 regnet_x_400mf regnet_y_400mf densenet121 densenet169"),
    *_of("timm", "resnet50 resnetv2_50 seresnext26d_32x4d res2net50_26w_4s hrnet_w18_small dla34 dpn68"),
    *_of("timm", "mobilenetv2_100 mobilenetv3_large_100 mobilenetv4_conv_small efficientnet_b0 regnetx_004"),
    *_of("timm", "regnety_004 densenet121 cspresnet50 repvgg_a0 ghostnet_100 vovnet39a xception41"),
    *_of("timm", "inception_v3", 299),
    *_of("fastbn", "wrn_28_10", 32),
)


def named(names: list[str]) -> tuple[Architecture, ...]:
    """Return the architectures of these names or keys; all of them where none is asked for.

    Raises UsageError for a name that is not among them."""
    if not names:
        return ARCHITECTURES
    found = [a for a in ARCHITECTURES if a.name in names or a.key in names]
    missing = sorted(set(names) - {a.name for a in found} - {a.key for a in found})
    if missing:
        raise UsageError(
            f"{', '.join(missing)}: not among the architectures; they are "
            + ", ".join(a.key for a in ARCHITECTURES)
        )
    return tuple(found)
