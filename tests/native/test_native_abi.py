"""The structures and enumerations that cross the CPU library's border, as the compiler lays them out and as
ctypes does."""

from __future__ import annotations

import ctypes
import subprocess

import pytest

from fastbn.engine.native import abi, build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
STRUCTURES = {
    "Geometry": abi.GeometryStruct,
    "Source": abi.SourceStruct,
    "Path": abi.PathStruct,
    "Value": abi.ValueStruct,
    "Norm": abi.NormStruct,
    "Step": abi.StepStruct,
    "Patch": abi.PatchStruct,
}
# where ctypes has a field for each element of an array
ELEMENTS = {
    "y": "ys[0]", "y_r": "ys[1]", "mean": "means[0]", "mean_r": "means[1]", "added": "added[0]",
    "added_2": "added[1]",
}  # fmt: skip


def member(structure: str, field: str) -> str:
    return ELEMENTS.get(field, field) if structure == "Value" else field


def questions() -> dict[str, int]:
    """Expressions of C++, and what each should be."""
    asked = {name: value for value, name in enumerate(map(str.upper, abi.FUNCTIONS))}
    asked |= {called.name: int(called) for called in abi.Called}
    for name, mirror in STRUCTURES.items():
        asked[f"sizeof({name})"] = ctypes.sizeof(mirror)
        for field, kind, *_ in mirror._fields_:
            where = member(name, field)
            asked[f"offsetof({name}, {where})"] = getattr(mirror, field).offset
            asked[f"sizeof({name}::{where.partition('[')[0]})"] = ctypes.sizeof(kind) * (1 + ("[" in where))
    return asked


def test_the_structures_are_laid_out_alike(tmp_path):
    asked = questions()
    source, program = tmp_path / "structs.cpp", tmp_path / "structs"
    lines = "\n".join(f'    printf("%lld\\n", static_cast<long long>({question}));' for question in asked)
    head = '#include <cstddef>\n#include <cstdio>\n#include "structs.h"\n'
    source.write_text(f"{head}int main() {{\n{lines}\n}}\n", encoding="utf-8")
    command = [*(build.compiler() or []), "-std=c++17", f"-I{build.SOURCES}", str(source), "-o", str(program)]
    subprocess.run(command, check=True, timeout=300)
    said = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=60).stdout
    assert dict(zip(asked, map(int, said.split()), strict=True)) == asked


def test_every_function_is_declared_and_played():
    """A function that is called by name, the enumeration's case, and what ctypes is told are one list."""
    assert [called.function for called in abi.Called] == list(abi.ARGUMENTS)
    calls = (build.SOURCES / "calls.h").read_text(encoding="utf-8")
    played = " ".join((build.SOURCES / "play.cpp").read_text(encoding="utf-8").split())
    for called in abi.Called:
        assert f"void {called.function}(" in calls
        assert f"case {called.name}: {called.function}(" in played
