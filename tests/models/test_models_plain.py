"""to_torch, fold_bn, torch.export and ONNX: the same outputs, without fastbn and without BatchNorm."""

import io
import pickle
import subprocess
import sys

import pytest
import torch
from nets import resnet
from torch import nn

import fastbn
from bench.oracle.networks import images, norms
from bench.oracle.stock import error
from fastbn.analysis.pruning import prune
from fastbn.errors import MachineError, UsageError

NETWORKS = [(8, 4, None, 9), (18, 4, None, 33), (50, 4, "imagenet", 33)]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("depth, width, family, side", NETWORKS)
def test_to_torch(depth, width, family, side, training):
    model = fastbn.fuse(resnet(depth, width, family).double(), "reference").train(training)
    plain, x = model.to_torch(), images(3, side, side)
    assert model.training == training
    assert error(plain(x), model.eval()(x)) < 1e-10
    found = plain.state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(
        torch.equal(found[name], value) or "running" in name for name, value in model.state_dict().items()
    )
    assert [n for n, p in plain.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    assert not any(module.training for module in plain.modules())
    assert not any(type(module).__module__.startswith("fastbn") for module in plain.modules())


@pytest.mark.slow
def test_what_to_torch_gives_loads_without_fastbn(tmp_path):
    model = resnet(8, 4).eval()
    torch.save(model.to_torch(), tmp_path / "plain.pt")
    x = images(2, 9, 9, dtype=torch.float32)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch\nsys.modules['fastbn'] = None\n"
        "m = torch.load('plain.pt', weights_only=False)\ntorch.save(m(torch.load('x.pt')).detach(), 'y.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    assert error(torch.load(tmp_path / "y.pt"), model(x)) < 1e-6


@pytest.mark.parametrize("depth, width, family, side", NETWORKS)
def test_fold_bn(depth, width, family, side):
    model, x = resnet(depth, width, family).double().eval(), images(3, side, side)
    folded = fastbn.fold_bn(model)
    assert not norms(folded) and len(norms(model)) > 5
    assert error(folded(x), model(x)) < 1e-10
    assert not any(p.requires_grad for name, p in folded.named_parameters() if not name.startswith("fc"))


def test_fold_bn_leaves_what_it_may_not_merge():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y + self.other(x)  # y is read twice, x comes from no convolution

    model = Shared().eval()
    assert len(norms(fastbn.fold_bn(model))) == 2
    x = images(2, dtype=torch.float32)
    assert error(fastbn.fold_bn(model)(x), model(x)) < 1e-6


def test_a_pruned_network_folds_too():
    smaller, x = prune(resnet(14, 6).double().eval(), 0.6), images(2, 9, 9)
    assert error(fastbn.fold_bn(smaller)(x), smaller(x)) < 1e-10 and not norms(fastbn.fold_bn(smaller))


@pytest.mark.slow
def test_torch_export_of_any_batch_size():
    model = fastbn.fuse(resnet(8, 4), "auto")  # in train mode: it is exported in eval mode
    program = fastbn.to_exported(model, images(2, 9, 9, dtype=torch.float32))
    x = images(5, 9, 9, dtype=torch.float32)
    assert model.training
    assert error(program.module()(x), model.eval()(x)) < 1e-5
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert error(torch.export.load(file).module()(x), model(x)) < 1e-5


def test_example_images():
    for shape in ((1, 3, 9, 9), (3, 9, 9)):
        with pytest.raises(UsageError, match=r"example images .*\(.*9, 9\)"):
            fastbn.to_exported(resnet(8, 4), torch.zeros(shape))


@pytest.mark.slow
@pytest.mark.parametrize("pruned", [False, True], ids=["whole", "pruned"])
@pytest.mark.parametrize("depth, width, family, side", NETWORKS)
def test_onnx(depth, width, family, side, pruned, tmp_path):
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install -e '.[export]'")
    import onnxruntime

    model = resnet(depth, width, family).eval()
    model = prune(model, 0.5) if pruned else fastbn.fuse(model, "auto")
    path = tmp_path / "model.onnx"
    fastbn.to_onnx(model, images(2, side, side, dtype=torch.float32), path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = images(5, side, side, dtype=torch.float32)
    found = torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])
    with torch.no_grad():
        assert (found - model(x)).abs().max() < 1e-4 * model(x).abs().max().clamp(min=1)


def test_onnx_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MachineError, match=r"fastbn\[export\]"):
        fastbn.to_onnx(resnet(8, 4), torch.zeros(2, 3, 9, 9), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_methods_result_can_be_copied():
    plain = resnet(8, 4).eval().to_torch()
    x = images(2, 9, 9, dtype=torch.float32)
    assert error(pickle.loads(pickle.dumps(plain))(x), plain(x)) == 0


class InTrain(nn.Module):
    """Python code that decides by the mode, and a BatchNorm that does more than its class."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), norm(8), nn.Linear(8, 4)

    def forward(self, x):
        x = nn.functional.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.fc(nn.functional.dropout(x, 0.5, training=self.training))


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2.0 * super().forward(x)


@pytest.mark.parametrize("give", [fastbn.fold_bn, fastbn.to_torch])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, Doubled])
def test_a_network_in_train_mode_is_handed_on_in_eval_mode(give, norm):
    model, x = InTrain(norm).double().train(), images(3, 9, 9)
    model(x)
    given = give(model)
    assert model.training and not given.training
    assert torch.equal(given(x), given(x))
    assert error(given(x), model.eval()(x)) < 1e-10
