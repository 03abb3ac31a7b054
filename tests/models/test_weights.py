"""Seeded weights: their distributions, and their bits for good."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from small_resnet import small
from torch import nn

from fastbn import draws
from fastbn.models import init_names
from fastbn.models.families import resolve
from fastbn.models.init import BETA, GAMMA, WEIGHT, draw, fingerprint
from fastbn.models.resnet import FastBNOnlyResNet

C = 4096  # channels of the BN that the moments are taken on
CONV = (64, 32, 3, 3)
FAN_IN, N = 32 * 9, 64 * 32 * 9


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


# `python tests/models/test_weights.py` prints what this machine draws, for the test in another process.

if __name__ == "__main__":
    print(json.dumps({"capability": torch.backends.cpu.get_cpu_capability(), **fingerprints()}))
