"""An import goes down, never up: lazy ones, those under TYPE_CHECKING and module names in strings too."""

from __future__ import annotations

import ast
import collections
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = (  # from the ground up; docs/architecture.md says what lives where
    {"advice", "choices", "cli", "draws", "errors", "files", "machine", "page", "version"},
    {"graph"},
    {"kernels"},
    {"engine"},
    {"planning"},
    {"data", "models", "trainable"},
    {"recipe", "settings"},
    {"adapt", "training"},
    {"patches"},
    {"run"},
    {"", "__main__", "analysis", "analyze", "doctor", "evaluate", "experiments", "patch", "train",
     "train_xla"},
)  # fmt: skip
MOST_FILES, MOST_LINES = 18, 300  # of a folder, of a file
PLACE = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def room(module: str) -> str:
    """Return the part of a dotted name that a floor is known by; "" of the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in PLACE else ""


def named(node: ast.AST) -> Iterator[str]:
    """The modules of fastbn that a node imports, or says in a string."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        whole = node.module == "fastbn"
        yield from (f"{node.module}.{alias.name}" if whole else node.module for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
        yield node.value.partition(":")[0]


def upward(module: str, source: str) -> list[str]:
    """Return what a module's source names that stands above it."""
    own = PLACE[room(module)]
    found = []
    for node in ast.walk(ast.parse(source)):
        for name in named(node):
            if name.startswith("fastbn.") and PLACE[room(name)] > own:
                found.append(f"{module}:{node.lineno} -> {name}")
    return found


def modules() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "fastbn").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "kernels" not in parts:
            yield ".".join(parts).removesuffix(".__init__"), path.read_text(encoding="utf-8")


def test_no_import_goes_up():
    assert [line for module, source in modules() for line in upward(module, source)] == []


def test_every_room_has_a_floor():
    known = {module.split(".")[1] for module, _ in modules() if module != "fastbn"}
    assert known <= PLACE.keys(), known - PLACE.keys()


@pytest.mark.parametrize(
    "source",
    [
        "from fastbn.training import step",
        "def f():\n    from fastbn.settings.config import Config",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fastbn.training.fit",
        "HOME = 'fastbn.experiments.torri.networks:MLP'",
        "from fastbn import fuse",
    ],
)
def test_a_wrong_import_is_found(source):
    assert upward("fastbn.engine.walk", source) != []
    assert upward("fastbn.experiments.paper", source) == []


def test_rooms_and_files_are_small():
    """No folder of code holds more files than a reader takes in at a glance, no file of Python more lines."""
    rooms: collections.Counter[str] = collections.Counter()
    long: dict[str, int] = {}
    for root in ("bench", "fastbn", "kernels", "tests"):
        found = [path for end in ("py", "cpp", "h", "sh") for path in (ROOT / root).rglob(f"*.{end}")]
        rooms.update(str(path.parent.relative_to(ROOT)) for path in found)
        lines = {
            str(p.relative_to(ROOT)): p.read_text("utf-8").count("\n") for p in found if p.suffix == ".py"
        }
        long |= {path: count for path, count in lines.items() if count > MOST_LINES}
    assert long == {}
    assert {room: count for room, count in rooms.items() if count > MOST_FILES} == {}


def types_of(source: str) -> Iterator[str]:
    """The public types that a module defines: its classes, and aliases that begin with a capital."""
    for node in ast.parse(source).body:
        names = [node.name] if isinstance(node, ast.ClassDef) else []
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        yield from (name for name in names if name[0].isupper() and not name.isupper())


def test_no_public_type_name_stands_twice():
    where = collections.defaultdict(list)
    for module, source in modules():
        for name in types_of(source):
            where[name].append(module)
    assert {name: homes for name, homes in where.items() if len(homes) > 1} == {}


def test_a_type_is_a_class_or_an_alias():
    source = "class Cost: ...\nShape = tuple[int, int]\nMOST = 3\nclass _Own: ...\ndef run(): ...\n"
    assert list(types_of(source)) == ["Cost", "Shape"]
