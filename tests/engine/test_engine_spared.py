"""The stock path never takes the weight gradient that oneDNN gets wrong on CPUs with AVX2 alone: a crash,
a hang, or wrong values."""

import copy
import pickle

from runs import python
from torch import nn

import fastbn
from fastbn.engine.onednn_workaround import FORWARD, spare
from fastbn.models.export import to_torch

# what both libraries then take a CPU with AVX-512 for
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}

# convolutions of the kind: 1×1, strided in either direction, two to seven channels, channels-last; no ReLU's
# sign depends on a rounding
TRAINED = """
import copy, torch, fastbn
from torch import nn

torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.shortcut, self.last = nn.Conv2d(channels, 8, 1, stride), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.last(self.shortcut(self.norm(self.first(x)))).sigmoid().mean((2, 3)))

images = torch.randn(24, 3, 18, 18).contiguous(memory_format=torch.channels_last)
labels = torch.arange(24) % 10

def gradient(model, layer, x):
    model.zero_grad()
    nn.functional.cross_entropy(model(x), labels).backward()
    return model.get_submodule(layer).weight.grad.double()

def held(model, layer, engine):
    with torch.no_grad():
        for norm in (m for n, m in model.named_modules() if n.split(".")[-1].startswith("bn")):
            norm.bias.copy_(torch.where(torch.arange(norm.num_features) % 3 > 0, 6.0, -6.0))
    oracle = copy.deepcopy(fastbn.fuse(model, "stock")).double()
    wanted = gradient(oracle, layer, images.double())
    fastbn.fuse(model, engine)
    for _ in range(2):
        # float32's own error is 1e-4, for the BatchNorm behind cancels most of the gradient; oneDNN's values
        # are off by 0.1 to 1
        found = gradient(model, layer, images)
        # random=2: the others' gradient is 0
        error = ((found - wanted) * (found != 0)).norm() / wanted.norm()
        assert error < 5e-3, (model, layer, float(error))

for channels in (2, 3, 4, 7):
    for stride in (2, 3, (1, 2), (2, 1)):
        held(fastbn.freeze(Net(channels, stride), "all"), "shortcut", "stock")
    held(fastbn.freeze(Net(channels, 2), "bn+all-bn@shortcut"), "shortcut", "reference")
    held(fastbn.freeze(Net(channels, 2).to(memory_format=torch.channels_last), "all"), "shortcut", "stock")
for train in ("all", "shortcut", "random=2"):
    net = fastbn.freeze(fastbn.FastBNOnlyResNet(8, width=4, engine="stock"), train)
    held(net, "layer2.0.downsample.0", "stock")
train = fastbn.Images(torch.randint(0, 256, (24, 18, 18, 3), dtype=torch.uint8), labels)
history = fastbn.fit(Net(4, 2), train, epochs=2, batch_size=24, progress=False)
print("epochs", len(history))
"""


def test_the_weight_gradient_of_a_narrow_strided_1x1_convolution_is_right(monkeypatch):
    for name, value in AVX2.items():
        monkeypatch.setenv(name, value)
    done = python(TRAINED)
    assert done.returncode == 0, f"ended by {done.returncode}\n{done.stderr[-2000:]}"
    assert done.stdout.split() == ["epochs", "2"]


def test_only_that_kind_of_convolution_is_given_another_forward_and_a_plain_copy_has_none():
    kinds = {
        "narrow": nn.Conv2d(4, 8, 1, 2),
        "wide": nn.Conv2d(8, 8, 1, 2),
        "3×3": nn.Conv2d(4, 8, 3, 2),
        "unstrided": nn.Conv2d(4, 8, 1),
        "grouped": nn.Conv2d(4, 8, 1, 2, groups=2),
    }
    model = nn.ModuleDict(kinds)
    spare(model)
    assert [name for name, conv in kinds.items() if FORWARD in vars(conv)] == ["narrow"]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert vars(copied["narrow"])[FORWARD].conv is copied["narrow"]

    net = fastbn.FastBNOnlyResNet(8, width=4)
    spared = {name for name, module in net.named_modules() if FORWARD in vars(module)}
    assert spared == {"layer2.0.downsample.0"}
    assert not any(FORWARD in vars(module) for module in to_torch(net).modules())
