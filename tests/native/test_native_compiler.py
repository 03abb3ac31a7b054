"""Whatever the C++ compiler and the cache folder turn out to be, it costs one clear line: no crash, no
hang."""

from __future__ import annotations

import contextlib
import pwd
import resource
from pathlib import Path

import pytest
from built import building

from fastbn.engine.native import build, compiler

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


@pytest.fixture
def here(tmp_path, monkeypatch):
    yield from building(tmp_path, monkeypatch)


def test_a_compiler_that_hangs_is_ended(here, monkeypatch):
    """What it started ends too; it hangs at its version already, or while it builds."""
    number = here.path / "number"
    hangs = f"echo $$ > {number}; sleep 1000"
    for limit, script in (("ANSWERS", hangs), ("BUILDS", f'[ "$1" = --version ] || {{ {hangs}; }}')):
        monkeypatch.setattr(compiler, limit, 0.5)
        monkeypatch.setenv("CXX", here.fake(script))
        assert "had not ended after 0 s and was stopped" in here.refusal()
        assert not Path(f"/proc/{number.read_text().strip()}").exists()
        assert here.names() == []
        monkeypatch.setattr(compiler, limit, 20)


def test_a_compiler_that_never_stops_printing_is_ended(here, monkeypatch):
    monkeypatch.setattr(compiler, "ANSWERS", 0.5)
    monkeypatch.setenv("CXX", here.fake("yes error"))
    assert "was stopped" in here.refusal()


def test_a_full_folder_is_told_before_anything_is_built(here):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        said = here.refusal()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"can't be kept in {here.folder} (File too large); make room" in said and here.builds == 0
    assert here.names() == []


def test_a_folder_that_fills_up_meanwhile_is_told_as_that(here, monkeypatch):
    monkeypatch.setenv(
        "CXX",
        here.fake(
            '[ "$1" = --version ] || { echo "collect2: error: ld returned 1 exit status" >&2; exit 1; }'
        ),
    )
    assert "ld returned 1 exit status" in here.refusal()
    calls = iter([None, OSError(28, "No space left on device")])

    def reserve(folder: Path) -> None:
        if (error := next(calls)) is not None:
            raise error

    monkeypatch.setattr(build, "reserve", reserve)
    assert "(No space left on device); make room" in here.refusal()


@pytest.mark.parametrize("there", ["a file", "a link to nowhere", "a lock that is a link"])
def test_a_folder_that_cannot_be_made_is_told(here, there):
    (here.path / "cache").mkdir()
    if there == "a file":
        here.folder.write_text("the user's")
    elif there == "a link to nowhere":
        here.folder.symlink_to(here.path / "nowhere" / "at all")
    else:
        here.folder.mkdir()
        (here.folder / "lock").symlink_to(here.path / "victim")
    assert f"can't be kept in {here.folder}" in here.refusal()
    assert not (here.path / "victim").exists()


def test_a_user_without_a_home_is_told(here, monkeypatch):
    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(here.path)
    assert "XDG_CACHE_HOME and HOME are not set" in here.refusal()
    assert not (here.path / "~").exists()


CXX = {
    "quotes": ('g++ "x', "is no command (No closing quotation)"),
    "not there": ("no-such-compiler -x", "no C++ compiler was found (CXX=no-such-compiler -x)"),
    "not UTF-8": (
        r"printf 'an error: \377\001\033[2J\n'; exit 1",
        "could not build the kernels (an error: ��",
    ),
    "no message": ("exit 3", "it ended with 3 and without a message"),
    "a long message": ("printf 'error %01000d' 1; exit 1", "0000…"),
    "nothing made": ("exit 0", "it ended with 0 and without a message"),
    "junk made": ('for to; do :; done; echo junk > "$to"', "built kernels that can't be loaded"),
}


@pytest.mark.parametrize("what", CXX)
def test_whatever_the_compiler_is_it_costs_one_line(here, monkeypatch, what):
    script, expected = CXX[what]
    monkeypatch.chdir(here.path)  # the junk of --version
    monkeypatch.setenv("CXX", script if what in ("quotes", "not there") else here.fake(script))
    assert expected in here.refusal()
    assert not here.folder.exists() or here.names() == []


def test_a_program_that_is_none_is_told(here, monkeypatch):
    (here.path / "c++").write_bytes(b"\x7fELF nothing")
    (here.path / "c++").chmod(0o755)
    monkeypatch.setenv("CXX", str(here.path / "c++"))
    assert "could not be run" in here.refusal()


def test_progress_that_cannot_be_shown_ends_nothing(here, monkeypatch):
    with open("/dev/full", "w") as full:
        for stderr in (None, full):
            monkeypatch.setattr("sys.stderr", stderr)
            here.load()
            here.library.unlink()
        with contextlib.suppress(OSError):
            full.close()
    assert here.builds == 2
