"""The built CPU kernels between runs: a damaged or foreign library is built anew, never loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from built import building

from fastbn.engine.native import build, kernel_cache
from fastbn.errors import MachineError

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


@pytest.fixture
def here(tmp_path, monkeypatch):
    yield from building(tmp_path, monkeypatch)


def test_a_library_is_built_once_and_said_so_once(here, capsys):
    assert here.load().fastbn_lanes() == 7
    assert "building the CPU kernels (once, about 20 s)" in capsys.readouterr().err
    assert here.load().fastbn_lanes() == 7 and here.builds == 1
    assert capsys.readouterr().err == ""
    assert here.names() == [here.library.name, here.library.name + ".sha256"]
    size, digest = (here.folder / f"{here.library.name}.sha256").read_text().split()
    assert int(size) == here.library.stat().st_size and len(digest) == 64


def truncated(library: Path) -> None:
    _replace(library, library.read_bytes()[:4096])


def zeros(library: Path) -> None:
    _replace(library, bytes(library.stat().st_size))


def one_bit(library: Path) -> None:
    held = bytearray(library.read_bytes())
    held[len(held) // 2] ^= 1
    _replace(library, bytes(held))


def appended(library: Path) -> None:
    _replace(library, library.read_bytes() + b"\0")


def empty(library: Path) -> None:
    _replace(library, b"")


def foreign(library: Path) -> None:
    other = library.parent.parent / "other"
    command = build.compiler() or []
    subprocess.run(
        [*command, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(other)], input=b"int other;", check=True
    )
    _replace(library, other.read_bytes())


def a_folder(library: Path) -> None:
    library.unlink()
    library.mkdir()
    (library / "precious").write_text("the user's")


def a_pipe(library: Path) -> None:
    library.unlink()
    os.mkfifo(library)


def a_link(library: Path) -> None:
    precious = library.parent.parent / "precious"
    precious.write_text("the user's")
    library.unlink()
    library.symlink_to(precious)


def a_link_to_the_right_thing(library: Path) -> None:
    library.rename(library.parent.parent / "moved")
    library.symlink_to(library.parent.parent / "moved")


def no_digest(library: Path) -> None:
    _beside(library).unlink()


def another_digest(library: Path) -> None:
    _beside(library).write_text(f"{library.stat().st_size} {'0' * 64}\n")


def a_digest_of_junk(library: Path) -> None:
    _beside(library).write_bytes(bytes(range(256)) * 100)


def a_huge_size(library: Path) -> None:
    _beside(library).write_text(f"{10**18} {'0' * 64}\n")


def a_digest_that_is_a_folder(library: Path) -> None:
    _beside(library).unlink()
    _beside(library).mkdir()


def _beside(library: Path) -> Path:
    return library.with_name(library.name + ".sha256")


def _replace(library: Path, held: bytes) -> None:
    """Replace it by a new file: this process has the old one in its memory."""
    library.unlink()
    library.write_bytes(held)


DAMAGES = [
    truncated,
    zeros,
    one_bit,
    appended,
    empty,
    foreign,
    a_folder,
    a_pipe,
    a_link,
    a_link_to_the_right_thing,
]
DAMAGES += [no_digest, another_digest, a_digest_of_junk, a_huge_size, a_digest_that_is_a_folder]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_library_is_built_anew(here, damage):
    here.load()
    library = here.library
    damage(library)
    assert not kernel_cache.is_intact(library)
    assert here.load().fastbn_lanes() == 7 and here.builds == 2
    assert kernel_cache.is_intact(library)
    here.load()
    assert here.builds == 2
    kept = [path for path in here.path.rglob("precious")]
    assert all(path.read_text() == "the user's" for path in kept) and bool(kept) == (
        damage in (a_folder, a_link)
    )


def test_what_killed_builds_left_is_removed(here):
    """A build that is killed leaves its folder; the next one to build takes it away, and nobody else's."""
    here.folder.mkdir(parents=True)
    left = [here.folder / "build-abc", here.folder / "kernels-0-0.so.0123.part"]
    left[0].mkdir()
    (left[0] / "kernels.so").write_text("half")
    left[1].write_text("half")
    (here.folder / "shards-1.npz").write_text("another's")
    here.load()
    assert here.names() == [here.library.name, here.library.name + ".sha256", "shards-1.npz"]


def test_a_build_that_goes_on_is_waited_for_and_left_alone(here):
    with kernel_cache.locked(here.folder, 1.0):
        (here.folder / "build-abc").mkdir()
        with (
            pytest.raises(MachineError, match="another process has been building"),
            kernel_cache.locked(here.folder, 0.0),
        ):
            raise AssertionError("two at once")
        said = []
        with (
            pytest.raises(MachineError, match="another process has been building"),
            kernel_cache.locked(here.folder, 2 * kernel_cache.LOCK_INTERVAL, lambda: said.append(1)),
        ):
            raise AssertionError("two at once")
        assert said == [1]
        assert (here.folder / "build-abc").is_dir()
    here.load()
    assert here.builds == 1


def test_where_no_compiler_is_left_what_was_built_is_used(here, monkeypatch):
    here.load()
    monkeypatch.setenv("PATH", str(here.path / "nothing"))
    assert build.compiler() is None
    assert here.load().fastbn_lanes() == 7 and here.builds == 1
    zeros(here.library)
    assert "no C++ compiler was found (c++, g++, clang++)" in here.refusal()


@pytest.mark.parametrize("change", ["another CPU", "other flags", "other sources"])
def test_what_was_built_for_something_else_is_not_used(here, monkeypatch, change):
    """A cache on a home that machines share: the other CPU's library would end the process at its first
    call."""
    here.load()
    monkeypatch.setenv("PATH", str(here.path / "nothing"))
    if change == "another CPU":
        monkeypatch.setattr(build, "_cpu", lambda: "flags: fpu sse2")
    elif change == "other flags":
        monkeypatch.setattr(build, "FLAGS", [*build.FLAGS, "-O0"])
    else:
        (build.SOURCES / "new.h").write_text("// a comment")
    assert "no C++ compiler was found" in here.refusal()


def test_the_key_tells_cpus_apart(monkeypatch):
    mine = build._cpu()
    assert (
        any(line.startswith(("flags", "Features")) for line in mine.splitlines())
        or not Path("/proc/cpuinfo").exists()
    )
    monkeypatch.setattr(build, "_cpu", lambda: mine.replace("avx2", "").replace("asimd", "") + "-")
    changed = build._key()
    monkeypatch.undo()
    assert changed != build._key()


def test_another_compiler_builds_its_own(here, monkeypatch):
    here.load()
    real = shutil.which((build.compiler() or [""])[0])
    monkeypatch.setenv("CXX", here.fake(f'exec {real} "$@"'))
    assert here.load().fastbn_lanes() == 7 and here.builds == 2
