"""A model as a few KB: brought back bit for bit, or refused in one line; written whole, or not at all."""

import errno
import os
import pickle
import re

import pytest
import safetensors.torch
import torch
from runs import digits, network, python

import fastbn
from fastbn.errors import MachineError, UsageError
from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.trainable import count, freeze, trainable
from fastbn.training import checked_file
from fastbn.training.checkpoint import load, save

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(**arguments):
    """Return a network whose parameters and statistics are no longer those it was drawn with."""
    model = network(**arguments)
    fastbn.fit(model, *digits(), epochs=1, batch_size=32, progress=False)
    return model


def assert_same(model, other):
    mine, its = model.state_dict(), other.state_dict()
    assert mine.keys() == its.keys()
    for name, value in mine.items():
        assert value.dtype == its[name].dtype and torch.equal(value, its[name]), name
    assert [name for name, _ in trainable(model)] == [name for name, _ in trainable(other)]
    assert model.spec == other.spec


def header(path):
    return checked_file.read(path)[1]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save(trained(), path)
    return path


@pytest.mark.parametrize("train", ["bn", "gamma", "bn+output", "all", "none"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"seed": 3, "weight_init": "binary", "gamma_init": "normal", "num_classes": 10}],
    ids=["", "other"],
)
def test_round_trip(tmp_path, train, arguments):
    model = freeze(trained(**arguments), train)
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert_same(model, again)
    assert header(tmp_path / "model.safetensors")["source"]["kind"] == "seed"
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), again.eval()(images))


def test_a_resnet14_takes_11_kb(tmp_path):
    """1,120 γ and β and as many running statistics in fp32 are 9 KB, of a network of 175,258 parameters;
    the header the rest."""
    model = FastBNOnlyResNet(14)
    save(model, tmp_path / "model.safetensors")
    assert count(model) == (1120, 175_258)
    assert 8 * 1120 < (tmp_path / "model.safetensors").stat().st_size < 11_000


@pytest.mark.parametrize("edited", [False, True], ids=["orthogonal", "edited"])
def test_frozen_weights_that_no_seed_gives_are_stored(tmp_path, edited):
    model = trained(weight_init="kaiming_normal" if edited else "orthogonal")
    if edited:
        with torch.no_grad():
            model.layer2[0].conv1.weight[0, 0, 0, 0] += 1e-6
    save(model, tmp_path / "model.safetensors")
    assert header(tmp_path / "model.safetensors")["source"]["kind"] == "stored"
    assert (tmp_path / "model.safetensors").stat().st_size > 4 * sum(p.numel() for p in model.parameters())
    assert_same(model, load(tmp_path / "model.safetensors"))


@pytest.fixture
def from_file(tmp_path):
    """(model, its checkpoint, the file that its frozen weights came from)"""
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network(seed=9).state_dict(), file)
    model = trained(weights=file)
    save(model, tmp_path / "model.safetensors")
    return model, tmp_path / "model.safetensors", file


def test_frozen_weights_from_a_file(from_file):
    model, path, file = from_file
    assert header(path)["source"]["kind"] == "file"
    assert path.stat().st_size < file.stat().st_size
    assert_same(model, load(path))


def test_a_file_that_has_moved_is_named_with_the_remedy(from_file, tmp_path):
    model, path, file = from_file
    moved = file.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(UsageError, match=rf"{re.escape(str(file))}.*weights="):
        load(path)
    again = load(path, weights=moved)
    assert_same(model, again)
    save(again, path)
    assert_same(model, load(path))  # and is then known where it lies


@pytest.mark.parametrize("name", ["conv1.weight", "fc.bias"])
def test_a_file_that_was_altered_is_refused(from_file, name):
    _, path, file = from_file
    state = safetensors.torch.load_file(file)
    state[name].view(-1)[0] += 1e-6
    safetensors.torch.save_file(state, file)
    with pytest.raises(UsageError, match="frozen weights from the file have another SHA-256"):
        load(path)


def test_a_file_altered_where_training_began_only_does_not_matter(from_file):
    model, path, file = from_file
    state = safetensors.torch.load_file(file)
    state["bn1.weight"] += 1
    safetensors.torch.save_file(state, file)
    assert_same(model, load(path))


def refused(path, match=None):
    with pytest.raises(UsageError, match=match) as caught:
        load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_truncated_file_is_refused(saved):
    content = saved.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        refused(saved, "truncated or not a checkpoint")
    saved.write_bytes(content + b"\0")
    refused(saved)


def test_a_flipped_bit_is_refused_wherever_it_is(saved):
    content = bytearray(saved.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")  # of the tensors
    for place in [*range(0, begin, 5), *range(begin, len(content), 37)]:
        bit = 1 << place % 8
        content[place] ^= bit
        saved.write_bytes(content)
        refused(saved)
        content[place] ^= bit
    saved.write_bytes(content)
    load(saved)


@pytest.mark.parametrize(
    "metadata, match",
    [
        (None, "format is none"),
        ({"format": "pt"}, "format is pt"),
        ({"format": "fastbn-99"}, "format is fastbn-99, this version's is fastbn-1"),
    ],
)
def test_a_file_that_is_not_this_version_s_is_refused(tmp_path, metadata, match):
    safetensors.torch.save_file({"x": torch.zeros(3)}, tmp_path / "other.safetensors", metadata)
    refused(tmp_path / "other.safetensors", match)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    refused(tmp_path / "missing.safetensors", "no such file")
    refused(tmp_path, "no such file")  # a folder that holds no run
    (tmp_path / "text").write_text("hello")
    refused(tmp_path / "text", "truncated or not a checkpoint")
    torch.save({"x": torch.zeros(3)}, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", "truncated or not a checkpoint")


@pytest.mark.parametrize(
    "alter, match",
    [
        (
            lambda tensors, header: tensors.update(parameters=tensors["parameters"][:-1]),
            "parameters should hold 168 numbers",
        ),
        (lambda tensors, header: tensors.pop("running"), "running should hold .* found nothing"),
        (lambda tensors, header: header["model"].update(seed=1), "from the seed have another SHA-256"),
    ],
    ids=["shorter", "missing", "seed"],
)
def test_a_checkpoint_of_another_network_is_refused(saved, alter, match):
    tensors, header = checked_file.read(saved)
    alter(tensors, header)
    checked_file.write(saved, tensors, header)
    with pytest.raises(UsageError, match=match):
        load(saved)


def test_only_this_network_is_saved(tmp_path):
    with pytest.raises(TypeError, match=r"FastBNOnlyResNet, got Linear.*a patch"):
        save(torch.nn.Linear(2, 2), tmp_path / "x")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_file_that_was_there(saved, monkeypatch, call):
    before = saved.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(MachineError, match="No space left on device; what was saved before is intact"):
        save(trained(seed=1), saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.slow
def test_a_disk_that_fills_while_writing_leaves_the_file_that_was_there(saved):
    """The kernel's own refusal, by a limit on the size of files."""
    before = saved.read_bytes()
    done = python(
        "import resource, signal, sys\n"
        "from fastbn import FastBNOnlyResNet, save\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    save(FastBNOnlyResNet(8, width=4, seed=1), sys.argv[1])\n"
        "except RuntimeError as error:\n    print(type(error).__name__, error)\n",
        saved,
    )
    assert done.stdout.startswith("MachineError could not save") and "intact" in done.stdout, done.stderr
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_no_pickle_is_read(saved, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a pickle was read")

    expected = load(saved)
    for module, name in ((torch, "load"), (pickle, "Unpickler"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(module, name, never)
    assert_same(expected, load(saved))
