"""python -m bench.architectures: the tables of docs/networks.md are those of the records."""

from __future__ import annotations

import json

import pytest
from runs import REPOSITORY

from bench.architectures import __main__ as main
from bench.architectures import table
from bench.architectures.catalogue import ARCHITECTURES, named
from bench.records.conditions import RESULTS
from fastbn.errors import UsageError

ROW = {
    "library": "timm",
    "name": "one",
    "size": 224,
    "batch_size": 8,
    "convolutions": [3, 4],
    "multiplications": [90, 100],
    "gradients": 1e-12,
    "buffers": 1e-13,
    "gradients_float32": 2e-6,
    "stock_float32": 1e-6,
    "seconds": {"stock": [4, 4, 4], "stock channels-last": [1.0, 3.0, 2.0], "fastbn": [0.5, 1.0, 4.0]},
    "peak_bytes": {"stock": 4, "stock channels-last": 5, "fastbn": 2},
}


def test_the_page_is_what_the_records_make():
    page = (REPOSITORY / "docs" / "networks.md").read_text(encoding="utf-8")
    own = page.partition(table.MARKERS[0])[2].partition(table.MARKERS[1])[0]
    assert own.strip("\n") == table.tables(RESULTS)


def test_the_readme_says_what_the_record_says(tmp_path):
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    own = readme.partition(table.README_MARKERS[0])[2].partition(table.README_MARKERS[1])[0]
    assert own.strip("\n") == table.sentence(RESULTS)
    record = {"conditions": {"device": "a CPU", "date": "2026-01-02"}, "rows": [ROW]}
    (tmp_path / "architectures-x.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UsageError, match="no record"):
        table.sentence(tmp_path)
    record["rows"] = [ROW | {"library": "torchvision", "name": name} for name in ("resnet50", "mobilenet_v2")]
    (tmp_path / "architectures-x.json").write_text(json.dumps(record), encoding="utf-8")
    assert "takes 1000 ms a step on\na CPU, 2.00 times as fast as stock BN-only" in table.sentence(tmp_path)


def test_a_table(tmp_path):
    conditions = {
        "device": "a CPU",
        "date": "2026-01-02",
        "versions": {"torch": "2"},
        "libraries": {"timm": "1"},
    }
    failed = {"library": "timm", "name": "two", "batch_size": 8, "agreement_failed": "it raised"}
    full = {"stock compiled": [1.0, 1.5, 2.0], "stock full": [5, 5, 5], "stock full channels-last": [2, 3, 4]}
    full["fastbn NCHW"] = [0.7, 1.2, 4.0]
    larger = ROW | {"batch_size": 32, "seconds": ROW["seconds"] | full}
    record = {"conditions": conditions, "rows": [ROW, failed, larger]}
    (tmp_path / "architectures-x.json").write_text(json.dumps(record), encoding="utf-8")
    lines = table.tables(tmp_path).splitlines()
    assert lines[0] == "On a CPU, 2026-01-02, torch 2, timm 1; steps of 8 images."
    # per round 2, 3 and 0.5 times: the median of the rounds' ratios
    assert (
        lines[4]
        == "| timm one, 224² | 3/4, 90.0% | 1e-12 | 1e-13 | 2e-06, 1e-06 | 1000 | 2.00× | — | — | 0.50× |"
    )
    assert "it raised" in lines[5]
    assert (
        lines[7].endswith("steps of 32 images.") and "| 1000, 1200 | 1.50× | 3.00× | — | 0.50× |" in lines[11]
    )


def test_names():
    assert named([]) == ARCHITECTURES and len(ARCHITECTURES) >= 25
    assert [a.key for a in named(["dla34", "timm-resnet50"])] == ["timm-resnet50", "timm-dla34"]
    with pytest.raises(UsageError, match="resnet5: not among the architectures"):
        named(["resnet5"])


def test_what_is_measured_again_takes_its_place():
    """By batch size, in the catalogue's order; what was not measured this time stays."""
    dla = {"library": "timm", "name": "dla34", "batch_size": 8}
    larger = dla | {"batch_size": 32, "seconds": 3}
    now = [larger, dla | {"seconds": 2}, dla | {"name": "resnet50", "seconds": 2}]
    merged = main._merged([dla | {"seconds": 1, "size": 224}], now)
    assert [row["name"] for row in merged] == ["resnet50", "dla34", "dla34"]
    assert merged[1:] == [dla | {"seconds": 2, "size": 224}, larger]


def test_a_part_that_works_again_has_not_failed():
    failed = {"library": "timm", "name": "dla34", "batch_size": 8, "memory_failed": "killed"}
    now = {"library": "timm", "name": "dla34", "batch_size": 8, "peak_bytes": {}, "memory_commit": "abc"}
    assert main._merged([failed], [now]) == [now]


def test_providers_without_those_of_the_ratios_are_refused():
    with pytest.raises(UsageError, match="'fastbn', 'stock'"):
        main.main(["--part", "seconds", "--providers", "stock full", "stock channels-last"])
