"""Weights that somebody else made: archives larger than they are, values that no network can use, names that
are none."""

import io
import os
import zipfile

import pytest
import safetensors.torch
import torch
from damage import refused
from runs import network, train

from fastbn.files.archives import check_zip
from fastbn.models.load_weights import BESIDE, TIMES, load_weights, put


def saved(path, state):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


def load_refused(path, match, **more):
    """The file is refused in one line, the model untouched."""
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refused(load_weights, model, path, match=match, **more)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def repacked(path, change, compression=zipfile.ZIP_STORED):
    """Return the archive with some members changed, by the end of their names."""
    content = {info.filename: zipfile.ZipFile(path).read(info) for info in zipfile.ZipFile(path).infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, next((new for end, new in change.items() if name.endswith(end)), data))
    return path


@pytest.mark.parametrize("size", [1 << 20, 1 << 26])
def test_a_compressed_archive_is_refused_unread(tmp_path, size):
    path = repacked(
        saved(tmp_path / "w.pth", network().state_dict()), {"data/0": bytes(size)}, zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < size / 2
    load_refused(path, r"its members take [0-9,]+ bytes in an archive of [0-9,]+: it was compressed")


def test_members_that_overlap_are_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", bytes(100_000))
        archive.filelist.extend(archive.filelist * 20)
    with pytest.raises(ValueError, match="its members take"):
        check_zip(file)


def test_a_wrong_crc_is_refused_and_a_missing_one_is_not(tmp_path):
    state = network(seed=3).state_dict()
    path = saved(tmp_path / "w.pth", state)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        at = content.index(archive.read(largest), largest.header_offset)
    content[at + 1] ^= 1
    path.write_bytes(content)
    load_refused(path, "Bad CRC-32")
    try:
        torch.serialization.set_crc32_options(False)
        saved(path, state)
    finally:
        torch.serialization.set_crc32_options(True)
    model = network()
    load_weights(model, path)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_far_larger_than_the_model_is_refused_unread(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.touch()
    os.truncate(path, 1 << 41)
    most = BESIDE + TIMES * sum(value.nbytes for value in network().state_dict().values())
    load_refused(path, f"more than the {most:,} that such a file may have")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("conv1.weight", float("nan"), r"1 not finite \(conv1.weight\)"),
        ("bn1.weight", float("inf"), r"1 not finite \(bn1.weight\)"),
        ("bn1.running_mean", float("-inf"), "not finite"),
        ("fc.weight", 1e300, r"not finite \(fc.weight\)"),  # in the model's float32
        ("bn1.running_var", -1e-9, r"1 below 0 \(bn1.running_var\)"),
        ("bn1.num_batches_tracked", -1, "below 0"),
    ],
)
def test_values_that_no_network_can_use_are_refused(tmp_path, suffix, name, value, message):
    state = network().state_dict()
    one = state[name].clone().double() if name != "bn1.num_batches_tracked" else state[name].clone()
    one.view(-1)[-1] = value
    load_refused(
        saved(tmp_path / f"w{suffix}", {**state, name: one}), f"holds what no network can use: .*{message}"
    )
    with pytest.raises(ValueError, match="no network can use"):
        put(network(), {**state, name: one}, "a run")


def test_what_is_refused_ends_a_run_by_exit_code_2(tmp_path, capsys):
    state = network().state_dict()
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], torch.nan)
    path = saved(tmp_path / "w.pth", state)
    for more in ((), ("--train", "none")):
        assert train(tmp_path / "run", "--weights", str(path), *more) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "no network can use" in err


ODD = {
    "long and raw": (
        {"x" * 1_000_000: torch.ones(1), "a\nb\x1b[31m": torch.ones(1)},
        r"2 unexpected \(a\\nb\\x1b\[31m, x+…x+\)",
    ),
    "complex counter": ({"bn1.num_batches_tracked": torch.tensor(1j)}, "must hold floating-point tensors"),
    "sparse": ({"conv1.weight": torch.ones(3).to_sparse()}, "sparse"),
    "no name": ({("a",) * 10_000: torch.ones(1)}, "found tuple: "),
    "a number": ({7: torch.ones(1)}, "found 7: "),
}


@pytest.mark.parametrize("what", ODD)
def test_names_and_tensors_that_are_none(tmp_path, what):
    more, message = ODD[what]
    load_refused(saved(tmp_path / "w.pth", {**network().state_dict(), **more}), message)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_no_weight(tmp_path):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    load_refused(
        saved(tmp_path / "w.pth", {**network().state_dict(), "conv1.weight": nested}),
        "must hold floating-point tensors",
    )


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "new\nline.pth"])
def test_a_path_that_cannot_be_looked_at(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_refused(path, "weights file ")
    if "\0" not in path:
        assert train(tmp_path / "run", "--weights", path) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_memory_that_runs_out_is_one_line(tmp_path, monkeypatch):
    path = saved(tmp_path / "w.pth", network().state_dict())
    monkeypatch.setattr("fastbn.files.read", lambda *_: (_ for _ in ()).throw(MemoryError()))
    load_refused(path, "weights file: the memory ran out while .*w.pth was read", kind=RuntimeError)
