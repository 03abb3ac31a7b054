"""Weights from files: loaded whole, or refused in one line that says why; nothing in a file is run."""

import hashlib
import os
import pickle

import pytest
import safetensors.torch
import torch
from small_resnet import small

from fastbn.errors import UsageError
from fastbn.models.init import fingerprint, load_weights

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
