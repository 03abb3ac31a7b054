"""Whatever the C++ compiler and the cache folder turn out to be, it costs one clear line: no crash, no
hang."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from built import building

from fastbn import FastBNOnlyResNet, explain, fuse
from fastbn.engine import select
from fastbn.engine.native import build, compiler
from fastbn.errors import MachineError

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "tests/native/test_engine_played_memory.py::test_a_program_touches_nothing_beside_its_memory"


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


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | path | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_denormals_and_nan_behave_as_before_loading():
    """A library built with -ffast-math would set the whole process to flush-to-zero."""
    code = """
import numpy as np, torch
def probe():
    tiny = np.float32(1e-39)
    return float(tiny * np.float32(0.5)), (torch.tensor(1e-39) * 0.5).item(),
    torch.tensor(float("nan")).relu().isnan().item()
before = probe()
from fastbn.engine.native import build
build.library()
assert before == probe() and before[0] > 0 and before[1] > 0, (before, probe())
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def unbuilt(monkeypatch):
    """As in a process that has not yet asked for the kernels, nor been warned."""
    monkeypatch.setattr(build, "_library", functools.cache(build._library.__wrapped__))
    monkeypatch.setattr(select, "warn_of_reference", functools.cache(select.warn_of_reference.__wrapped__))


def test_without_a_compiler_auto_says_so_and_native_refuses(unbuilt, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    model, x = FastBNOnlyResNet(8, width=4), torch.randn(2, 3, 8, 8)
    said = "engine 'native': no C++ compiler was found (CXX=no-such-compiler)"
    with pytest.warns(UserWarning, match="fastbn's engine is 'reference', which is slow: engine") as caught:
        assert f"engine reference ({said}" in str(explain(model))
        for _ in range(2):
            model(x).sum().backward()
    assert len(caught) == 1 and said in str(caught[0].message)
    with pytest.raises(MachineError, match="engine 'native' was asked for, but"):
        fuse(model, "native")(x)


def test_a_failing_compiler_is_one_clear_line(unbuilt, tmp_path, monkeypatch):
    fake = tmp_path / "c++"
    fake.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'internal compiler error' >&2\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        MachineError, match=r"could not build the kernels \(internal compiler error\)"
    ) as error:
        build.library()
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "-march=x86-64-v3",
        "-march=x86-64-v3 -mno-avx2 -mno-avx",
        "-fsanitize=address,undefined -fno-sanitize-recover=all -g -O1",
    ],
    ids=["AVX2", "SSE: four lanes, as NEON has", "sanitizers"],
)
def test_other_builds(flags, tmp_path):
    """The same source for narrower vectors, and under the address and undefined-behaviour sanitizers: the
    operations' tests pass, and a program's."""
    environment = {"FASTBN_CXXFLAGS": flags, "XDG_CACHE_HOME": str(tmp_path)}
    if "sanitize" in flags:
        preload = [
            subprocess.run(
                [*build.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, timeout=60
            ).stdout.strip()
            for name in ("libasan.so", "libubsan.so")
        ]
        environment |= {"LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": "detect_leaks=0"}
    operations_pass(environment)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("clang++") is None, reason="needs clang++: Debian's clang")
def test_another_compiler(tmp_path):
    """Debian's clang comes without OpenMP, as every Mac's does."""
    operations_pass({"CXX": "clang++", "XDG_CACHE_HOME": str(tmp_path)})


def operations_pass(environment: dict[str, str]) -> None:
    """The operations' tests and a program's, in a process with this environment."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "tests/native/test_native_operations.py",
        "tests/native/test_native_transforms.py",
        PROGRAM,
    ]
    done = subprocess.run(
        command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
