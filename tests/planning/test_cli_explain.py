"""--explain: the plan on this machine and on devices that are not here."""

from __future__ import annotations

import re

import pytest

from fastbn.machine import devices
from fastbn.planning import roofline
from fastbn.train import main

pytestmark = pytest.mark.usefixtures("one_thread")
DIGITS = ["--explain", "--dataset", "digits"]


def said(capsys, *arguments):
    code = main([*DIGITS, *arguments])
    return code, capsys.readouterr()


def test_the_plan_here(capsys):
    code, text = said(capsys, "--depth", "14", "--memory", "0.17", "--batch-size", "256")
    assert code == 0
    lines = dict(
        line.split(maxsplit=1) for line in text.out.splitlines() if line.startswith(("plan", "time"))
    )
    assert (
        "batch 256; raw outputs computed again in segments of" in lines["plan"]
        and "of 0.162 GB at the peak" in lines["plan"]
    )
    assert "at least" in lines["time"] and "measured here" in lines["time"]


def test_rates_under_load_are_said_with_care(monkeypatch, capsys):
    """In two digits, and that an idle machine does better."""
    monkeypatch.setattr(devices, "processors", lambda: 2)
    lines = []
    for load in (0.5, 6.2):
        monkeypatch.setattr(devices, "load", lambda load=load: load)
        _, text = said(capsys, "--depth", "8")
        lines += [line for line in text.out.replace("\n          ", " ").splitlines() if line[:4] == "time"]
    rates = [re.search(r"at most about ([\d,]+) images/s", line)[1] for line in lines]
    assert all(len(rate.replace(",", "").rstrip("0")) <= 2 for rate in rates)
    busy = "measured here while 6.2 processes want 2 processors: an idle machine does better"
    assert [line.endswith(busy) for line in lines] == [False, True]
    assert [roofline.rounded(value) for value in (0.0319, 7.77, 77.7, 1_599, 98_765)] == [
        *("0.032", "7.8", "78", "1,600", "99,000")
    ]


def test_slices_are_called_another_model(capsys):
    _, text = said(capsys, "--depth", "8", "--bn-batch", "32")
    assert "BatchNorm over slices of 32 (another model than BatchNorm over the batch)" in text.out


def test_a_device_that_is_not_here(capsys):
    code, text = said(capsys, "--depth", "20", "--on", "h200", "--batch-size", "4096")
    assert code == 0
    assert (
        "NVIDIA H200 141GB SXM" in text.out
        and "triton, mixed" in text.out
        and "of 134 GB at the peak" in text.out
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--on", "h300"], ("h300", "nearest: h200")),
        (["--on", "h200", "--engine", "native"], ("native", "auto, triton")),
        (["--on", "h200", "--batch-size", "auto"], ("measured", "not here")),
        (["--memory", "0.001"], ("with every block computed again", "--bn-batch")),
        (["--memory", "0"], ("memory", "above 0")),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_one_line(arguments, words, capsys):
    code, text = said(capsys, "--depth", "8", *arguments)
    assert code == 2 and text.err.count("\n") == 1
    assert all(word in text.err for word in words)


def test_on_without_explain(capsys):
    assert main(["--depth", "8", "--on", "h200"]) == 2
    assert "--on belongs to --explain" in capsys.readouterr().err
