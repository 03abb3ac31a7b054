"""Files and modules that docstrings, comments and pages name are there."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("bench", "docs", "examples", "fastbn", "kernels", "tests")
PROSE = re.compile(r'^ *"""[^"]*(?:"[^"]+)*?"""|(?:^|\s)# .*$', re.M)
KINDS = (".py", ".md", ".cpp", ".h", ".json", ".sh")
FILE = re.compile(r"(?<![\w./<>*-])((?:[\w-]+/)*[\w-]+\.(?:py|cpp|sh))\b(?![.:]\w)")
MODULE = re.compile(r"(?<![\w./-])((?:fastbn|bench)(?:\.\w+)+)\b(?!\()")
ELSEWHERE = {"unpack.py", "alloc_cpu.cpp", "script.py", "resnet_cifar10.py"}  # of no part of this tree


def files() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in KINDS]
    return [
        *ROOT.glob("*.md"),
        *ROOT.glob("*.py"),
        *(path for path in found if "__pycache__" not in path.parts),
    ]


def prose(text: str, python: bool) -> str:
    """Return a page whole; of Python the docstrings and comments, near enough."""
    return "\n".join(PROSE.findall(text)) if python else text


@functools.cache
def module_is_there(name: str) -> bool:
    """Return whether a dotted name is a module's, or of something that its module has."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:n])
        source = next(
            (path for path in (place.with_suffix(".py"), place / "__init__.py") if path.exists()), None
        )
        if source is not None:
            return (
                n == len(parts)
                or re.search(rf"\b{parts[n]}\b", source.read_text(encoding="utf-8")) is not None
            )
    return False


def stale(text: str, known: set[str]) -> list[str]:
    """Return what a text names that is not there."""
    lost = [name for name in FILE.findall(text) if name not in known and name.split("/")[-1] not in ELSEWHERE]
    return lost + [name for name in MODULE.findall(text) if not module_is_there(name)]


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every file's path, and all its ends: `engine/walk.py` and `walk.py` too."""
    parts = [path.relative_to(ROOT).parts for path in files()]
    return {"/".join(own[i:]) for own in parts for i in range(len(own))}


def test_what_is_named_is_there(known):
    found = {}
    for path in files():
        if path.suffix in (".py", ".md"):
            lost = stale(prose(path.read_text(encoding="utf-8"), path.suffix == ".py"), known)
            found |= {str(path.relative_to(ROOT)): lost} if lost else {}
    assert not found


@pytest.mark.parametrize(
    "text", ["as engine/no_such.py has it", "(`no_such.py`)", "see fastbn.engine.no_such"]
)
def test_a_stale_name_is_found(text, known):
    assert stale(text, known)


def test_a_right_name_is_none(known):
    text = "engine/walk.py and walk.py, `python -m bench.guard`, fastbn.fit(model), bench.suite.clock.played"
    assert stale(text, known) == [] and len(known) > 500
