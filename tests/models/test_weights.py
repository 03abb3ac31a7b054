"""Seeded weights: their distributions, their bits for good, and weights from files."""

import hashlib
import json
import math
import os
import pickle
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

from fastbn import draws
from fastbn.errors import UsageError
from fastbn.models import init_names
from fastbn.models.families import resolve
from fastbn.models.init import BETA, GAMMA, WEIGHT, draw, fingerprint, load_weights
from fastbn.models.resnet import FastBNOnlyResNet

C = 4096  # channels of the BN that the moments are taken on
CONV = (64, 32, 3, 3)
FAN_IN, N = 32 * 9, 64 * 32 * 9


def small(**arguments):
    return FastBNOnlyResNet(14, **{"width": 8, "engine": "stock", **arguments})


def drawn(*modules, **arguments):
    """Return the modules, drawn in a Sequential; NaN where the draw forgets one."""
    model = nn.Sequential(*modules)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 7)
    draw(model, resolve(14, **arguments))
    return model


def conv(init):
    return drawn(nn.Conv2d(32, 64, 3, bias=False), weight_init=init)[0].weight.detach().double()


def gamma(init):
    return drawn(nn.BatchNorm2d(C), gamma_init=init)[0].weight.detach().double()


def has_moments(x, mean, std, kurtosis):
    """Mean and variance within five standard errors, from the distribution's own fourth moment."""
    n = x.numel()
    assert abs(float(x.mean()) - mean) < 5 * std / math.sqrt(n)
    assert abs(float(x.var()) / std**2 - 1) < 5 * math.sqrt((kurtosis - 1) / n)


def test_the_names_are_those_that_can_be_drawn():
    assert (tuple(GAMMA), tuple(BETA), tuple(WEIGHT)) == (
        init_names.GAMMA_INITS,
        init_names.BETA_INITS,
        init_names.WEIGHT_INITS,
    )
    assert set(init_names.WEIGHT_INITS) - init_names.REGENERABLE == {"orthogonal"}


def test_kaiming_normal():
    w = conv("kaiming_normal")
    has_moments(w, 0, math.sqrt(2 / FAN_IN), 3)
    beyond = float((w.abs() > 2 * math.sqrt(2 / FAN_IN)).double().mean())
    assert abs(beyond - 0.0455) < 5 * math.sqrt(0.0455 / N)  # neither cut nor uniform


def test_kaiming_uniform():
    w, bound = conv("kaiming_uniform"), math.sqrt(6 / FAN_IN)
    has_moments(w, 0, math.sqrt(2 / FAN_IN), 9 / 5)
    assert 0.999 * bound < float(w.abs().max()) <= bound * (1 + 2**-24)


def test_binary_has_the_signs_of_the_normal_draw():
    w, size = conv("binary"), torch.tensor(math.sqrt(2 / FAN_IN), dtype=torch.float32).double()
    assert torch.equal(w.abs(), size.expand_as(w))
    assert torch.equal(w > 0, conv("kaiming_normal") >= 0)


# wide; tall: columns instead of rows; square
@pytest.mark.parametrize("shape", [(64, 32, 3), (96, 4, 3), (36, 4, 3)])
def test_orthogonal(shape):
    out, channels, kernel = shape
    w = (
        drawn(nn.Conv2d(channels, out, kernel, bias=False), weight_init="orthogonal")[0]
        .weight.detach()
        .double()
        .flatten(1)
    )
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    # float32's rounding, summed
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=2**-24 * 8)
    has_moments(w, 0, 1 / math.sqrt(max(w.shape)), 3)


def test_orthogonal_signs_are_fixed():
    """Without the fix Householder's QR leaves R's diagonal negative, and Q's first column opposed to the
    draw's."""
    q = drawn(nn.Linear(30, 40), weight_init="orthogonal")[0].weight.detach().double()
    normals = torch.from_numpy(draws.normal(0, "0.weight", 1200).reshape(40, 30))
    r = q.T @ normals
    assert (r.diag() > 0).all() and r.tril(-1).abs().max() < 1e-5


def test_fc():
    fc = drawn(nn.Linear(2048, 1000))[0].requires_grad_(False)
    has_moments(fc.weight.double(), 0, math.sqrt(2 / 2048), 3)
    bound = 1 / math.sqrt(2048)
    has_moments(fc.bias.double(), 0, bound / math.sqrt(3), 9 / 5)
    assert 0.98 * bound < float(fc.bias.abs().max()) <= bound * (1 + 2**-24)


def test_gamma_uniform():
    g = gamma("uniform")
    has_moments(g, 0.5, math.sqrt(1 / 12), 9 / 5)
    assert 0 <= float(g.min()) < 0.01 and 0.99 < float(g.max()) < 1


def test_gamma_uniform_symmetric():
    g = gamma("uniform_symmetric")
    has_moments(g, 0, math.sqrt(1 / 3), 9 / 5)
    assert -1 <= float(g.min()) < -0.99 and 0.99 < float(g.max()) < 1


def test_gamma_normal():
    g = gamma("normal")
    has_moments(g, 0, 1, 3)
    assert float(g.abs().max()) > 3


def test_gamma_he_normal():
    g, std = gamma("he_normal"), math.sqrt(2 / C)
    has_moments(g, 0, std, 3)  # a cut normal's kurtosis is less
    assert 1.95 * std / 0.87962566342397 < float(g.abs().max()) <= 2 * std / 0.87962566342397 * (1 + 2**-24)


def test_ones_zeros_and_running_statistics():
    bn = drawn(nn.BatchNorm2d(C), gamma_init="ones", beta_init="ones")[0]
    assert (bn.weight == 1).all() and (bn.bias == 1).all()
    assert (drawn(nn.BatchNorm2d(C))[0].bias == 0).all()
    assert (bn.running_mean == 0).all() and (bn.running_var == 1).all() and int(bn.num_batches_tracked) == 0


def test_a_draw_depends_on_seed_and_name_alone():
    deep, shallow = (
        FastBNOnlyResNet(depth, width=8, seed=3, engine="stock").state_dict() for depth in (20, 14)
    )
    assert all(torch.equal(value, deep[name]) for name, value in shallow.items())
    other = small(seed=4).state_dict()
    same = [name for name, value in shallow.items() if torch.equal(value, other[name])]
    assert all(
        name.endswith(("bias", "running_mean", "running_var", "tracked")) and name != "fc.bias"
        for name in same
    )
    assert not torch.equal(shallow["layer1.0.conv1.weight"], shallow["layer1.0.conv2.weight"])


def test_fingerprint():
    model = small()
    whole = fingerprint(model)
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert (
        whole
        == fingerprint(model, frozen)
        == fingerprint(model, reversed(frozen))
        == fingerprint(model.train().requires_grad_(True))
    )
    assert (
        whole == fingerprint(small().double()) == fingerprint(small().to(memory_format=torch.channels_last))
    )
    with torch.no_grad():
        model.bn1.weight.zero_()
        assert fingerprint(model) == whole and fingerprint(model, ["bn1.weight"]) != fingerprint(
            small(), ["bn1.weight"]
        )
        model.fc.bias[0] += 1
    assert fingerprint(model) != whole
    with pytest.raises(KeyError, match="layer9"):
        fingerprint(model, ["conv1.weight", "layer9"])


# SHA-256 of the drawn bits; one that changes is another network for everyone who named its seed.
GOLDEN = {
    "14 binary": "0e216778b9ad62ec04997bc5373b48336f948fcfb359f32ac6a9b668a00d9dac",
    "14 glorot_uniform": "5d9be8b64957f2d37a35d9964256d95463975054b42d6abce488d2e1133fb62b",
    "14 kaiming_normal": "fba603294b0a10d99fe2d0b645aabeb6b3cbcab9511c3719a5fde5d63ebec232",
    "14 kaiming_uniform": "653b38f60bc9a81310f120555f7bd7479d0388e4b1c8b76538b4c4dfb9bddb70",
    "14 torch_uniform": "806c96614783cf52d85b285f52b79189b42ff5c528b6c0c90c37c4db08d73e2a",
    "14 γ ones": "f44ea027f42cb86e7f59e172064a186c0a5f290dd3a5286eb54c7f2653fa4b7a",
    "14 γ uniform_symmetric": "eff5598d37a349c3d5d091947cc2a2b9986be8ea9fdec4a1f17feb8cafd5800e",
    "14 γ normal": "08e4b6064acbdc305b53ca86c70f370af3793ff657cb49645af4fb640e5bd564",
    "14 γ he_normal": "4175b18af0020db31f50ea9079cafa9915e955ff0570fb411f1b70a296f87bb1",
    "14 β ones": "b8cb54a1ab3422cbe8ee1c1595bfa361e9a218e364b3f9e06afebacb68826769",
    "14 seed 1": "0b30a0b251be1bcf2b2c0d3a03ad428b4e9794c9624834a8d86ea1c9f01d8138",
    "14 width 16": "c8da16f63b264a2b5b73a34155f13c17b519bd3a6b8d2b8b19590385ffd1ee19",
    "18 of 1000": "34152773b533f1663e4a72d43ff9a8af8428c0a147bc040196114d21ad0d1058",
}


def fingerprints():
    """Return a fingerprint of every parameter, γ, β and fc's bias included."""
    cases = {f"14 {init}": small(weight_init=init) for init in sorted(init_names.REGENERABLE)}
    cases |= {f"14 γ {init}": small(gamma_init=init) for init in init_names.GAMMA_INITS[1:]}
    cases |= {"14 β ones": small(beta_init="ones"), "14 seed 1": small(seed=1)}
    cases |= {
        "14 width 16": FastBNOnlyResNet(14, engine="stock"),
        "18 of 1000": FastBNOnlyResNet(18, 1000, engine="stock"),
    }
    return {case: fingerprint(model, dict(model.named_parameters())) for case, model in cases.items()}


@pytest.mark.parametrize("threads", [1, 2])
def test_golden_fingerprints(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert fingerprints() == GOLDEN
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_golden_fingerprints_without_vector_instructions():
    environment = {
        **os.environ,
        "ATEN_CPU_CAPABILITY": "default",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, env=environment, check=True, timeout=120
    )
    assert json.loads(done.stdout) == {"capability": "DEFAULT", **GOLDEN}


# From files


@pytest.fixture(scope="module")
def source():
    """A model unlike any fresh one: its own seed, and statistics that moved."""
    model = small(seed=9, gamma_init="normal", beta_init="ones").train()
    model(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    return model


def save(state, path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(dict(state), path)
    else:
        torch.save(state, path)
    return path


FORMS = {
    "whole.safetensors": lambda state: state,
    "whole.pth": lambda state: state,
    "nested.pt": lambda state: {"state_dict": state, "epoch": 3},
    "parallel.pth": lambda state: {f"module.{name}": value for name, value in state.items()},
    "both.pth": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("name", FORMS)
def test_a_file_is_loaded_whole(source, tmp_path, name):
    path = save(FORMS[name](source.state_dict()), tmp_path / name)
    model = small(weights=path)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
    assert model.weights_sha256 == hashlib.sha256(
        path.read_bytes()
    ).hexdigest() and model.weights_file == str(path)
    assert int(model.bn1.num_batches_tracked) == 1 and fingerprint(model) == fingerprint(source)
    assert model.bn1.weight.requires_grad and not model.conv1.weight.requires_grad
    assert name in repr(model)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_half_precision_and_no_counters(source, tmp_path, suffix):
    state = {
        name: value.half() for name, value in source.state_dict().items() if not name.endswith("tracked")
    }
    model = small()
    model(torch.ones(2, 3, 8, 8))  # counts one batch, which is not the file's
    load_weights(model, save(state, tmp_path / f"half{suffix}"))
    assert model.conv1.weight.dtype == torch.float32 and torch.equal(
        model.conv1.weight, source.conv1.weight.half().float()
    )
    assert int(model.bn1.num_batches_tracked) == 0


def test_another_number_of_classes_keeps_the_models_fc(source, tmp_path):
    path = save(source.state_dict(), tmp_path / "ten.safetensors")
    model, fresh = small(num_classes=7, weights=path), small(num_classes=7)
    assert torch.equal(model.fc.weight, fresh.fc.weight) and torch.equal(model.fc.bias, fresh.fc.bias)
    assert torch.equal(model.layer3[1].conv2.weight, source.layer3[1].conv2.weight)
    assert torch.equal(model.bn1.running_mean, source.bn1.running_mean)


def without(*names):
    return lambda state: {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "change, message",
    [
        (without("conv1.weight", "bn1.bias"), r"2 missing \(conv1.weight, bn1.bias\)"),
        (without("fc.bias"), r"1 missing \(fc.bias\)"),
        (without("bn1.running_var"), r"1 missing \(bn1.running_var\)"),
        (
            lambda state: {**state, **{f"x{i}": torch.ones(1) for i in range(5)}},
            r"5 unexpected \(x0, x1, x2, …\)",
        ),
        (
            lambda state: {**state, "conv1.weight": torch.ones(8, 3, 7, 7)},
            r"1 of another shape \(conv1.weight \(8, 3, 7, 7\) for",
        ),
        # with a bias of 10
        (lambda state: {**state, "fc.weight": torch.ones(5, 32)}, r"\(fc.weight \(5, 32\) for \(10, 32\)\)"),
        (
            lambda state: {**state, "conv1.weight": torch.ones(8, 3, 3, 3, dtype=torch.int8)},
            "must hold floating-point .* torch.int8",
        ),
        (
            lambda state: {"state": torch.ones(1)},
            r"77 missing \(conv1.weight, .*, …\), 1 unexpected \(state\)",
        ),
    ],
)
def test_a_file_that_does_not_fit(source, tmp_path, change, message, suffix):
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match=message) as caught:
        load_weights(model, save(change(source.state_dict()), tmp_path / f"bad{suffix}"))
    assert "\n" not in str(caught.value) and f"bad{suffix}" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "foreign", "missing", "folder"])
def test_a_file_that_cannot_be_read(source, tmp_path, damage, suffix):
    path = tmp_path / f"bad{suffix}"
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        content = save(source.state_dict(), path).read_bytes()
        cut = {
            "truncated": content[: len(content) * 2 // 3],
            "header": content[:20],
            "empty": b"",
            "foreign": b"<!DOCTYPE html>\n<html>",
        }
        path.write_bytes(cut[damage])
    with pytest.raises(UsageError, match="weights file") as caught:
        small(weights=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"state_dict": 3}, {"conv1.weight": [1.0]}, {1: torch.ones(1)}, torch.ones(3)]
)
def test_a_file_that_holds_something_else(tmp_path, content):
    with pytest.raises(UsageError, match="must hold"):
        small(weights=save(content, tmp_path / "other.pth"))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "writer",
    [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))],
    ids=["torch", "pickle"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
def test_pickle_is_never_executed(tmp_path, writer, suffix):
    trace, path = tmp_path / "executed", tmp_path / f"evil{suffix}"
    writer({"conv1.weight": Payload(trace)}, path)
    with pytest.raises(UsageError, match="not a readable"):
        small(weights=path)
    assert not trace.exists()


# `python tests/models/test_weights.py` prints what this machine draws, for the test in another process.

if __name__ == "__main__":
    print(json.dumps({"capability": torch.backends.cpu.get_cpu_capability(), **fingerprints()}))
