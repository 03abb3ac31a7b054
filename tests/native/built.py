"""A cache folder of its own for building the CPU kernels in, and sources that compile in a moment."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastbn.engine.native import build, compiler
from fastbn.errors import MachineError

SIZE = 1 << 14  # bytes of zeros that the small library holds


class Here:
    """What a test knows of them."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder, self.builds = path, path / "cache" / "fastbn", 0

    def load(self) -> ctypes.CDLL:
        build._library.cache_clear()
        return build.library()

    def refusal(self) -> str:
        with pytest.raises(MachineError) as caught:
            self.load()
        said = str(caught.value)
        assert "\n" not in said and said.isprintable() and len(said) < 600
        return said

    @property
    def library(self) -> Path:
        (found,) = self.folder.glob("kernels-*.so")
        return found

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name != "lock")

    def fake(self, script: str) -> str:
        path = self.path / "c++"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)


def building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """Provide a fixture's body, within which nothing that was built before is known."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "lanes.cpp").write_text(
        f'static char room[{SIZE}] = {{1}};\nextern "C" int fastbn_lanes() {{ return 6 + room[0]; }}\n'
    )
    found = Here(tmp_path)
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def counted(*arguments: object) -> None:
        found.builds += 1
        original(*arguments)

    original: Callable[..., None] = compiler.compile_library
    monkeypatch.setattr(build, "compile_library", counted)
    yield found
    build._library.cache_clear()
