"""Files that others made are read within bounds, and ours are written whole or not at all, whatever lies
in the way."""

import os

import pytest

from fastbn import files
from fastbn.errors import MachineError, UsageError


@pytest.fixture
def odd(tmp_path):
    """Paths at which no file lies that could be read, by what is there."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_bytes(b"12345")
    names = ("fifo", "folder", "device", "dangling", "loop", "missing", "file/below")
    return {**{name: tmp_path / name for name in names}, "long": tmp_path / ("a" * 300), "nul": "a\0b"}


def test_only_regular_files_are_read(odd, tmp_path):
    for path in odd.values():
        with pytest.raises(OSError) as caught:
            files.read(path, 10)
        assert files.reason(caught.value)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert files.read(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, more than the 4"):
        files.read(tmp_path / "link", 4)


def test_a_path_is_looked_at_or_refused(odd, tmp_path):
    for name in ("long", "nul", "loop"):
        with pytest.raises(UsageError, match="can't be looked at"):
            files.is_folder(odd[name])
    for name in ("dangling", "missing", "file/below"):
        assert files.look(odd[name]) is None
    assert files.is_folder(odd["folder"]) and not files.is_folder(tmp_path / "file")
    assert (
        files.is_file(tmp_path / "file")
        and not files.is_file(odd["fifo"])
        and not files.is_file(odd["device"])
    )


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "", '{"a": 1' + "0" * 10_000 + "}"], ids=["deep", "cut", "empty", "digits"]
)
def test_what_is_no_json(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError):
        files.read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff{}")
    with pytest.raises(ValueError):
        files.read_json(tmp_path / "x.json")


def test_writing_follows_no_link_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "target").symlink_to(tmp_path / "victim")
    files.write(tmp_path / "target", b"ours")
    assert (tmp_path / "victim").read_bytes() == b"mine"
    assert (tmp_path / "target").read_bytes() == b"ours" and not (tmp_path / "target").is_symlink()
    with pytest.raises(ZeroDivisionError), files.writing(tmp_path / "target") as file:
        file.write(b"half")
        assert [name for name in os.listdir(tmp_path) if files.PART.fullmatch(name)]
        1 / 0  # noqa: B018
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        files.write(tmp_path / "folder", b"x")
    assert (tmp_path / "target").read_bytes() == b"ours"
    assert sorted(os.listdir(tmp_path)) == ["folder", "target", "victim"]


def test_a_message_repeats_nothing_raw():
    assert files.shown("a\nb\x1b[31m\udcff\u202e") == r"a\nb\x1b[31m\udcff\u202e"
    assert len(files.shown("x" * 1_000_000)) <= files.SHOWN and files.shown("γ β") == "γ β"


@pytest.mark.parametrize("kind", [UsageError, MachineError])
def test_an_error_is_one_line(kind):
    assert str(kind("no folder a\nb\udcff; give γ")) == r"no folder a\nb\udcff; give γ"
    assert isinstance(kind("x"), (ValueError, RuntimeError)) and str(kind()) == ""
