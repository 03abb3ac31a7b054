"""The README's table, and bench.report's command: other files are left out by name."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # bench/ is not installed

from report_rows import KERNELS, STEPS, record, sections, written

from bench.records.rows import FORMAT
from bench.report import readme
from bench.report.__main__ import main
from fastbn.errors import UsageError

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
