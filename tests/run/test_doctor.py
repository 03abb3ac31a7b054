"""python -m fastbn.doctor: a page that says what is here, and an exit code that says whether it works."""

from __future__ import annotations

import pytest
import torch

from fastbn import doctor
from fastbn.engine import select
from fastbn.engine.interface import Execution
from fastbn.engine.native.engine import Native

pytestmark = pytest.mark.usefixtures("one_thread")


def page(capsys, *arguments):
    code = doctor.main(["--no-speed", *arguments])
    return code, capsys.readouterr().out


def test_what_works(capsys):
    code, said = page(capsys)
    assert code == 0 and said.splitlines()[-1] == "what auto would use works"
    for word in (
        "fastbn ",
        f"torch {torch.__version__}",
        "compiler: ",
        "fp32: ",
        "bf16: ",
        "ResNet-8's gradient",
    ):
        assert word in said


def test_without_a_compiler(capsys, monkeypatch):
    monkeypatch.setattr(select, "_why_not_native", lambda *_: "no C++ compiler was found")
    code, said = page(capsys)
    assert code == 0 and "fp32: reference (no C++ compiler was found)" in said


def test_a_wrong_engine_is_told(capsys, monkeypatch):
    right = Native.gradient

    def wrong(self, *arguments):
        found = right(self, *arguments)
        found[0].mul_(1.01)
        return found

    monkeypatch.setattr(Native, "gradient", wrong)
    monkeypatch.setattr(Native, "execution", Execution.EAGER)
    code, said = page(capsys)
    assert code == 1 and "WRONG: ResNet-8's gradient" in said and said.splitlines()[-1].endswith("stock does")


def test_the_speed_reading(monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.0)
    taken, ratio = doctor.speed()
    assert "auto " in taken and "stock, channels-last " in taken and "times as fast" in ratio
