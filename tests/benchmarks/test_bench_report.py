"""python -m bench.report: the page and the README's table say what the records say, and nothing where
these are silent."""

import dataclasses
import json
import math
import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # bench/ is not installed

from bench.records.rows import FORMAT, Record, Row
from bench.report import readme
from bench.report.__main__ import main, render
from bench.report.compare import cases, share_of_roofline
from bench.report.growth import curves
from bench.report.runs import same_accuracy
from fastbn.errors import UsageError
from fastbn.page import charts, page
from fastbn.page.scales import Scale, number

CASE = "ResNet-32, 32×32, batch 128, fp32"
CONDITIONS = {"device": "A <CPU>", "versions": {"torch": "2.13.0"}, "commit": "abc1234", "date": "2026-11-21"}
MACHINE = {"copy_bytes_per_second": 2e10, "matmul_flops_per_second": 2e11}
SECTIONS = ("headline", "steps", "kernels", "memory", "scaling", "runs", "energy", "conditions")


def step(provider, trains, seconds=None, **more):
    spread = (
        {} if seconds is None else {"seconds": seconds, "q1": seconds * 0.9, "q3": seconds * 1.2, "n": 15}
    )
    return Row(
        level="step", case=CASE, provider=provider, trains=trains, batch_size=128, **{**spread, **more}
    )


STEPS = [
    step("stock-full", "all", 0.4),
    step("stock-full compiled", "all", 0.2),
    step("stock-full <graph>", "all", 0.001, failed="gradient & weight < 0"),  # the fastest, but wrong
    step("stock-bn", "bn", 0.15, saved_bytes=315 * 10**6),
    step("fastbn native", "bn", 0.08, saved_bytes=178 * 10**6, energy_joules=6.4),
    step("fastbn reference", "bn", 0.3),
]
KERNELS = [
    Row(
        level="kernel",
        case="convolve",
        provider="stock",
        trains="",
        seconds=0.004,
        moved_bytes=4 * 10**7,
        flops=4 * 10**8,
    ),
    Row(
        level="kernel",
        case="convolve",
        provider="fastbn native",
        trains="",
        seconds=0.0025,
        moved_bytes=4 * 10**7,
        flops=4 * 10**8,
    ),
]
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


def record(*rows, machine=MACHINE):
    return Record(conditions=CONDITIONS, machine=machine, rows=list(rows))


def written(path, found):
    body = {"format": FORMAT, "conditions": found.conditions, "machine": found.machine}
    rows = [
        {name: value for name, value in dataclasses.asdict(row).items() if value is not None}
        for row in found.rows
    ]
    path.write_text(json.dumps(body | {"rows": rows}), encoding="utf-8")
    return path


def tree(found):
    """Return the page as XML: it fails where a tag is not closed, or a character not escaped."""
    return ET.fromstring(found.removeprefix("<!DOCTYPE html>\n"))


def words(found):
    return " ".join(" ".join(tree(found).find("body").itertext()).replace("\xa0", " ").split())


def sections(found):
    return [one.get("id") for one in tree(found).iter("section")]


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


def test_scales_and_ticks():
    scale = Scale(1.0, 100.0, 0.0, 200.0, log=True)
    assert (scale(1), scale(10), scale(100)) == (0.0, pytest.approx(100.0), 200.0)
    assert scale.ticks(6) == pytest.approx([1, 3, 10, 30, 100])
    assert Scale(0.0, 0.9, 0.0, 1.0).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert Scale(1e-3, 1e9, 0.0, 1.0, log=True).ticks(5) == pytest.approx([1e-3, 1, 1e3, 1e6, 1e9])
    assert [number(v) for v in (0.0, 0.01234, 9.996, 1234.5, 1.2e-7, -3.14159)] == [
        "0",
        "0.0123",
        "10.0",
        "1,230",
        "1.2e-07",
        "-3.14",
    ]


def test_a_bar_s_and_a_point_s_place():
    svg = ET.fromstring(
        charts.bars(
            "t",
            [
                charts.Bar("a", [charts.ChartValue(50.0, 40.0, 100.0)]),
                charts.Bar("b", [charts.ChartValue(25.0)]),
            ],
            "",
        )
    )
    track, first, _, second = [float(rect.get("width")) for rect in svg.iter("rect")]
    assert first == pytest.approx(track / 2, abs=0.1) and second == pytest.approx(track / 4, abs=0.1)
    (whisker,) = [one.get("d") for one in svg.iter("path")]
    assert re.match(rf"M{0.4 * track:.1f} .*H{track:.1f}m", whisker)
    svg = ET.fromstring(
        charts.lines("t", [charts.Series("s", [(0.0, 0.0), (5.0, 1.0), (10.0, 2.0)])], "x", "y")
    )
    at = [re.findall(r"[\d.]+", one.get("transform")) for one in svg.iter("path") if one.get("transform")][:3]
    (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in at]
    assert (
        y0 == 250.0
        and x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
        and y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    )
    # the axis goes on by a twentieth
    assert x2 - x0 == pytest.approx((charts.WIDTH - 12 - x0) / 1.05, abs=0.1)


def test_no_text_of_a_chart_leaves_it():
    """The width is what a glyph takes at most; names that are too long are among them."""
    long = "a provider's name of some eighty letters, which nobody would give, but who knows, after all"
    points = [(14.0, 1e-3), (14.5, 5.0), (866.0, 1e4)]
    drawn = [
        charts.bars("t", [charts.Bar(long, [charts.ChartValue(1234.5), None])], " MB", ("peak", "saved"))
    ]
    drawn += [
        charts.lines("t", [charts.Series(long, points, labels=("1", "2", "33"))], "x", "y", log=log)
        for log in (False, True)
    ]
    for svg in map(ET.fromstring, drawn):
        height = float(svg.get("viewBox").split()[3])
        for one in svg.iter("text"):
            width, x = charts.GLYPH * len(one.text), float(one.get("x"))
            left = {"start": x, "middle": x - width / 2, "end": x - width}[one.get("text-anchor")]
            assert left >= -1 and left + width <= charts.WIDTH + 1 and 0 < float(one.get("y")) <= height, (
                one.text
            )
        assert long in svg.get("aria-label") or long in "".join(svg.itertext())


def test_a_chart_of_nothing_is_nothing():
    assert (
        charts.bars("t", [], "")
        == charts.lines("t", [charts.Series("s", [(0.0, 1.0)])], "x", "y", log=True)
        == page.NOTHING
    )
    for point in ((3.0, 2.0), (0.0, 0.0)):
        assert charts.lines("t", [charts.Series("s", [point])], "x", "y")
    assert (
        page.section("empty", page.NOTHING)
        == page.figure(page.NOTHING, "t")
        == page.table(["a"], [])
        == page.NOTHING
    )


TABLE = """| training step | fastbn | best stock, BN only | best stock, everything | saved for the backward |
|---|---|---|---|---|
| ResNet-32, 32×32, batch 128, fp32 | 80.0 ms | 150 ms: 1.88× | 200 ms: 2.50× | 178 MB, stock 315 |
"""


def test_the_readme_s_table_is_written_once_and_the_rest_left_alone(tmp_path, capsys):
    target, source = tmp_path / "README.md", written(tmp_path / "step.json", record(*STEPS))
    before, after = "# Title\n\n| a | table |\n", "\nThe end.\n"
    target.write_text(f"{before}{readme.MARKERS[0]}\nold\n{readme.MARKERS[1]}{after}", encoding="utf-8")
    main([str(source), "--readme", str(target)])
    assert capsys.readouterr().out == f"{target}: changed\n"
    found = target.read_text(encoding="utf-8")
    assert found.startswith(f"{before}{readme.MARKERS[0]}\n") and found.endswith(
        f"{TABLE}{readme.MARKERS[1]}{after}"
    )
    assert "On A <CPU>, torch 2.13.0, commit abc1234, 2026-11-21" in found.replace("&lt;", "<")
    main([str(source), "--readme", str(target)])
    assert "unchanged" in capsys.readouterr().out and target.read_text(encoding="utf-8") == found
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "body",
    [
        "no markers",
        readme.MARKERS[0],
        f"{readme.MARKERS[1]} {readme.MARKERS[0]}",
        f"{readme.MARKERS[0]} {readme.MARKERS[1]} {readme.MARKERS[1]}",
    ],
)
def test_missing_markers_are_named(tmp_path, body):
    target = tmp_path / "README.md"
    target.write_text(body, encoding="utf-8")
    with pytest.raises(UsageError, match=r"README\.md: .*<!-- bench:steps --> and <!-- /bench:steps -->"):
        readme.write(target, [record(*STEPS)])
    assert target.read_text(encoding="utf-8") == body


def test_a_record_without_steps_has_no_table(tmp_path):
    target = tmp_path / "README.md"
    target.write_text(f"{readme.MARKERS[0]}{readme.MARKERS[1]}", encoding="utf-8")
    with pytest.raises(UsageError, match="no training step"):
        readme.write(target, [record(*KERNELS)])


def test_other_formats_are_left_out_by_name_or_refused(tmp_path, capsys):
    good, out = written(tmp_path / "good.json", record(*STEPS)), tmp_path / "report.html"
    others = {"old.json": '{"rows": []}', "list.json": "[1]", "text.json": "no JSON"}
    for name, body in others.items():
        (tmp_path / name).write_text(body, encoding="utf-8")
    main([str(path) for path in (good, good, *(tmp_path / name for name in others))] + ["-o", str(out)])
    said = capsys.readouterr()
    assert (
        said.out == f"{out}: written\n"
        and said.err == "left out, not benchmark records: old.json, list.json, text.json\n"
    )
    assert sections(out.read_text(encoding="utf-8")) == [
        "headline",
        "steps",
        "memory",
        "energy",
        "conditions",
    ]
    assert "[2]" not in out.read_text(encoding="utf-8")  # one file given twice is one record


@pytest.mark.parametrize("body", [None, '{"rows": []}', json.dumps({"format": FORMAT, "rows": []}), "[]"])
def test_nothing_to_report_is_an_error(tmp_path, capsys, body):
    path, out = tmp_path / "other.json", tmp_path / "report.html"
    if body is not None:
        path.write_text(body, encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main([str(path), "-o", str(out)])
    assert stopped.value.code == 2 and not out.exists()
    assert re.search(
        r"error: .*(can't be read|no benchmark record among 1 file|damaged)", capsys.readouterr().err
    )
