"""python -m bench.report: the page and the README's table say what the records say, and nothing where
these are silent."""

import dataclasses
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # bench/ is not installed

from report_rows import CASE, KERNELS, MACHINE, STEPS, record, sections, step, tree

from bench.records.rows import Row
from bench.report import readme
from bench.report.__main__ import render
from bench.report.compare import cases, share_of_roofline
from bench.report.growth import curves
from bench.report.runs import same_accuracy

SECTIONS = ("headline", "steps", "kernels", "memory", "scaling", "runs", "energy", "conditions")


SWEEPS = [
    dict(depth=d, batch_size=b, peak_memory_bytes=d * b * 10**5)
    for d, b in [(14, 128), (56, 128), (218, 128), (56, 32), (56, 512)]
]
SCALING = [
    Row(
        level="scaling",
        case=str(at),
        provider="fastbn native",
        trains="bn",
        seconds=0.002 * at["depth"] ** 1.5,
        **at,
    )
    for at in SWEEPS
]
RUNS = [
    Row(
        level="run", case="digits", provider="stock-full", trains="all", seconds=4.0 * e, accuracy=a, epochs=e
    )
    for e, a in ((1, 0.3), (2, 0.6), (3, 0.9))
] + [
    Row(
        level="run",
        case="digits",
        provider="fastbn native",
        trains="bn",
        seconds=10.0,
        accuracy=0.5,
        epochs=3,
    )
]


def words(found):
    return " ".join(" ".join(tree(found).find("body").itertext()).replace("\xa0", " ").split())


def test_a_full_record_gives_every_section_and_one_file():
    found = render([record(*STEPS, *KERNELS, *SCALING, *RUNS)])
    assert sections(found) == list(SECTIONS)
    assert [link.get("href") for link in tree(found).iter("a")] == [f"#{name}" for name in SECTIONS]
    assert not re.search(r"https?:|\bsrc=|<link|<script|@import|url\(", found)
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(found)
    drawn = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(drawn) > 5 and all(one["role"] == "img" and one["aria-label"] for one in drawn)


def test_ratios_are_against_the_best_stock_provider_that_did_not_fail():
    (case,) = cases([record(*STEPS)], "step")
    assert case.best("fastbn").provider == "fastbn native"
    assert (case.best("bn").provider, case.best("all").provider) == ("stock-bn", "stock-full compiled")
    ratio, low, high = case.ratio("all")
    assert math.isclose(ratio, 2.5) and math.isclose(low, 0.18 / 0.096) and math.isclose(high, 0.24 / 0.072)
    said = words(render([record(*STEPS)]))
    assert "1.88 times as fast as the best stock BN-only step" in said
    assert "2.50 times as fast as the best stock step that trains everything" in said
    assert f"{CASE} fastbn native 80.0 ms stock-bn 150 ms 1.88× stock-full compiled 200 ms 2.50×" in said
    assert "72.0 … 96.0" in said and "1,600" in said  # quartiles in ms, images/s


def test_a_slower_fastbn_is_said_to_be_slower():
    assert "slower in 1 of 1 cases" in words(
        render([record(step("stock-bn", "bn", 0.1), step("fastbn native", "bn", 0.2))])
    )


def test_a_failed_provider_is_named_with_its_reason_and_text_is_escaped():
    found = render([record(*STEPS)])
    assert "stock-full <graph> failed: gradient & weight < 0" in words(found)
    assert "<graph>" not in found and "A <CPU>" not in found and "1.00 ms" not in words(found)


def test_what_was_not_timed_in_turn_says_so():
    found = [record(step("stock-bn", "bn", 0.1, alone=True), step("fastbn native", "bn", 0.1, alone=True))]
    assert "Timed one after another, not in turn" in words(
        render(found)
    ) and f"{CASE}: timed one after" in readme.steps(found)
    assert "one after another" not in words(render([record(*STEPS)])) + readme.steps([record(*STEPS)])


def test_where_all_of_a_kind_failed_there_is_no_ratio():
    found = record(step("stock-bn", "bn", failed="no"), step("fastbn native", "bn", 0.1))
    assert cases([found], "step")[0].ratio("bn") is None
    assert "fastbn native 100 ms failed" in words(render([found])) and "times as fast" not in words(
        render([found])
    )


@pytest.mark.parametrize(
    "row", [*STEPS[:3], KERNELS[0], SCALING[0], RUNS[0]], ids=lambda row: f"{row.level}-{row.provider}"
)
def test_one_row_or_missing_metrics_leave_sections_out(row):
    bare = Row(level=row.level, case="bare", provider=row.provider, trains=row.trains)
    for rows, machine in (([row], MACHINE), ([row], {}), ([bare], {})):
        found = render([record(*rows, machine=machine)])
        own = {"step": {"headline", "steps"}, "kernel": {"kernels"}, "run": {"runs"}, "scaling": set()}[
            row.level
        ]
        assert set(sections(found)) == own | {"conditions"}
        assert not re.search(r"\b(nan|None|inf)\b", words(found))


def test_kernels_against_the_machine_s_own_rates():
    stock, ours = KERNELS
    assert share_of_roofline(ours, MACHINE) == pytest.approx(0.8) and share_of_roofline(
        stock, MACHINE
    ) == pytest.approx(0.5)
    assert share_of_roofline(dataclasses.replace(ours, roofline_share=0.7), MACHINE) == 0.7
    said = words(render([record(*KERNELS)]))
    # ms, GB/s, of the copy, GFLOP/s, …
    assert "1. convolve fastbn native 2.50 16.0 80.0 % 160 80.0 % 80.0 % 1.60×" in said
    assert "This machine copies 20.0 GB/s and multiplies matrices at 200 GFLOP/s" in said


def test_exponents_are_fitted_and_crossing_sweeps_are_not_curves():
    found = curves([record(*SCALING)], ["scaling"], "depth", "seconds")
    assert list(found) == [(1, "batch 128")]
    (curve,) = found[1, "batch 128"]
    assert curve.exponent == pytest.approx(1.5) and curve.steepest == pytest.approx(1.5)
    said = words(render([record(*SCALING)]))
    assert "fastbn native ∝ x^1.50 (≤ 1.50)" in said
    assert "Peak memory against batch, at depth 56" in said and "fastbn native ∝ x^1.00 (≤ 1.00)" in said


def test_a_cliff_shows_in_the_steepest():
    rows = [
        Row(level="scaling", case="", provider="p", trains="bn", depth=d, seconds=s)
        for d, s in ((10, 1.0), (20, 2.0), (40, 16.0))
    ]
    ((curve,),) = curves([record(*rows)], ["scaling"], "depth", "seconds").values()
    assert curve.steepest == pytest.approx(3.0) and curve.exponent == pytest.approx(2.0)


def test_full_training_to_the_same_accuracy():
    (case,) = cases([record(*RUNS)], "run")
    assert same_accuracy(case) == (
        "BN-only training (fastbn native) reaches accuracy 0.500 in 10.0 s (3 epochs). Training everything "
        "(stock-full) is there, at "
        "0.600, after at most 8.00 s (2 epochs): 0.800 of BN-only's time, and goes on to 0.900 in 12.0 s (3 "
        "epochs)."
    )
    (case,) = cases([record(RUNS[0], RUNS[-1])], "run")
    assert "never does in what is recorded: 0.300 after 4.00 s (1 epoch)" in same_accuracy(case)


def test_two_records_are_told_apart_and_never_compared():
    found = [record(step("stock-bn", "bn", 1.0)), record(step("fastbn native", "bn", 0.1))]
    assert [case.ratio("bn") for case in cases(found, "step")] == [None, None]
    assert f"{CASE} [1]" in words(render(found)) and f"{CASE} [2]" in words(render(found))
