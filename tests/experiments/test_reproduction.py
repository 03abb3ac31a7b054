"""docs/reproduction.md: runs are found by their settings, each counts once, and the page is what the
command makes of the records."""

import itertools
import json
import re
import statistics
import xml.dom.minidom

import pytest
from records import body, line_of, write, write_folder
from runs import REPOSITORY

from fastbn.experiments.__main__ import main
from fastbn.experiments.figures import drawings
from fastbn.experiments.preset import MARKS
from fastbn.experiments.presets import PRESETS
from fastbn.experiments.records import load, read, runs_of
from fastbn.experiments.reproduction import DISCUSSION, markdown
from fastbn.experiments.study_tables import run_table, studies
from fastbn.page.page import standalone
from fastbn.training import checked_file

RESULTS, UNDER_WAY = REPOSITORY / "bench" / "results", REPOSITORY / "reproduction"
RECORDS = sorted(RESULTS.glob("run-*.json"))


def runs_here():
    return read([place for place in (RESULTS, UNDER_WAY) if place.is_dir()])


def found(folder, preset, name):
    """Return (seed, finished) of the runs of a line."""
    return [
        (run.config.seed, run.finished)
        for run in runs_of(PRESETS[preset], line_of(preset, name), read([folder]))
    ]


def row(text, name):
    return next(line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {name} |"))


def test_the_page_is_what_the_command_makes_of_the_records():
    docs, runs = REPOSITORY / "docs", runs_here()
    assert (docs / "reproduction.md").read_text() == markdown(runs, (docs / DISCUSSION).read_text())
    made = {f"{one.name}.svg": standalone(one.chart, one.title) for one in drawings(runs) if one.chart}
    kept = {path.name: path.read_text() for path in (docs / "figures").glob("*.svg")}
    assert kept.items() >= made.items()
    for name, text in made.items():
        assert f"(figures/{name})" in (docs / "reproduction.md").read_text()
        xml.dom.minidom.parseString(text)
        assert len(text) < 30_000 and 'xmlns="http://www.w3.org/2000/svg"' in text


@pytest.mark.parametrize("path", RECORDS, ids=[path.stem for path in RECORDS])
def test_a_record_can_be_read_and_holds_no_path_of_a_machine(path):
    run = load(path)
    assert run.finished and run.figure("test_accuracy") == pytest.approx(100 * run.summary["test_accuracy"])
    assert absolute(json.loads(path.read_text())) == []


def test_what_is_kept_of_runs_under_way_holds_no_path_of_a_machine():
    for path in [*UNDER_WAY.rglob("config.json"), *UNDER_WAY.rglob("summary.json")]:
        assert absolute(json.loads(path.read_text())) == [], path
    for path in [*UNDER_WAY.rglob("*.safetensors"), *REPOSITORY.glob("pretrained/*/*.safetensors")]:
        assert absolute(checked_file.read(path)[1]) == [] and path.stat().st_size < 200_000, path


def absolute(value):
    """Return the strings in JSON that are, or hold, an absolute path."""
    if isinstance(value, dict | list):
        return [
            text for part in (value.values() if isinstance(value, dict) else value) for text in absolute(part)
        ]
    return [value] if isinstance(value, str) and re.search(r"(^|\s)(/|[A-Za-z]:\\|~)", value) else []


def test_a_run_is_found_by_its_settings_not_by_its_name(tmp_path):
    write(tmp_path, "any-name", body("paper-depth", "14 bn", 0.5, seed=2))
    assert (
        found(tmp_path, "paper-depth", "14 bn")
        == [(2, True)]
        == found(tmp_path, "paper-width", "14 width 16 bn")
    )
    assert found(tmp_path, "paper-depth", "32 bn") == [] == found(tmp_path, "paper-depth", "14 all")


@pytest.mark.parametrize(
    "other",
    [{"lr": 0.2}, {"limit_train": 5_000}, {"limit_test": 100}, {"epochs": 40}, {"batch_size": 64},
    {"width": 32}, {"norm": "group"},
     {"gamma_init": "ones"}, {"val": 500}, {"bn_batch": 16}, {"dataset": "cifar100"}, {"augment": "none"},
     {"milestones": (10, 20)},
     {"weight_decay": 0.0}, {"weights": "a/file.safetensors"}],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_a_run_with_other_settings_is_not_of_the_line(tmp_path, other):
    write(tmp_path, "other", body("paper-depth", "14 bn", 0.5, **other))
    assert found(tmp_path, "paper-depth", "14 bn") == []


@pytest.mark.parametrize(
    "same",
    [
        {"engine": "stock"},
        {"threads": 2},
        {"device": "cpu"},
        {"precision": "fp32"},
        {"width": 16},
        {"family": "cifar"},
    ],
)
def test_where_and_how_it_ran_does_not_matter(tmp_path, same):
    write(tmp_path, "same", body("paper-depth", "14 bn", 0.5, **same))
    assert found(tmp_path, "paper-depth", "14 bn") == [(0, True)]


def test_sets_of_one_name_are_told_by_their_size(tmp_path):
    write(tmp_path, "small", body("torri-lstm-25k", "bn", 0.59))
    write(tmp_path, "whole", body("torri-lstm", "bn", 0.67))
    for preset, accuracy in (("torri-lstm-25k", 59.0), ("torri-lstm", 67.0)):
        (run,) = runs_of(PRESETS[preset], line_of(preset, "bn"), read([tmp_path]))
        assert run.figure("test_accuracy") == pytest.approx(accuracy)


def test_files_are_known_by_their_names(tmp_path):
    write(
        tmp_path,
        "vectors",
        body("torri-lstm-glove-25k", "bn", 0.6, vectors="elsewhere/glove.twitter.27B.25d.top12k.txt"),
    )
    assert (
        found(tmp_path, "torri-lstm-glove-25k", "bn") == [(0, True)]
        and found(tmp_path, "torri-lstm-25k", "bn") == []
    )


def test_a_run_starts_from_that_of_its_own_seed(tmp_path):
    write(tmp_path, "right", body("bn-then-all", "bn, then all", 0.9, seed=1))
    write(tmp_path, "wrong", body("bn-then-all", "bn, then all", 0.9, seed=2, weights="somewhere/bn-s1"))
    write(tmp_path, "none", body("bn-then-all", "all", 0.9, seed=0))
    assert found(tmp_path, "bn-then-all", "bn, then all") == [(1, True)]
    assert found(tmp_path, "bn-then-all", "all") == [(0, True)]


def test_no_run_counts_twice(tmp_path):
    """A record, its folder, the folder's copy that is under way, and the same again at a later date: one
    run."""
    first, later = body("paper-depth", "14 bn", 0.48), body("paper-depth", "14 bn", 0.49)
    later["summary"]["date"] = "2026-12-01"
    contents = [first, later, body("paper-depth", "14 bn", 0.3, over=7)]
    for order in itertools.permutations(range(3)):
        place = tmp_path / "".join(map(str, order))
        for position, k in enumerate(order):
            if position:
                write_folder(place / f"{position}" / "x-s0", contents[k], finished=k < 2)
            else:
                write(place, "x", contents[k] | ({"summary": {}} if k == 2 else {}))
        (run,) = runs_of(PRESETS["paper-depth"], line_of("paper-depth", "14 bn"), read([place]))
        assert run.finished and run.figure("test_accuracy") == pytest.approx(49)
        assert len(read([place, place])) == 1


def test_one_that_has_only_begun_is_the_same_run(tmp_path):
    write(tmp_path, "done", body("torri-lstm-25k", "bn", 0.59))
    begun = body("torri-lstm-25k", "bn", 0.5)
    write_folder(tmp_path / "begun", begun | {"epochs": []}, finished=False)
    assert len(read([tmp_path])) == 1 and read([tmp_path])[0].finished


def test_n_mean_and_sample_deviation(tmp_path):
    values = [0.482, 0.495, 0.5]
    for seed, value in enumerate(values):
        write(tmp_path, f"s{seed}", body("paper-depth", "14 bn", value, seed))
    write_folder(tmp_path / "s3", body("paper-depth", "14 bn", 0.1, 3, over=12), finished=False)
    text = studies(read([tmp_path]))
    percent = [100 * value for value in values]
    mean, deviation = (
        statistics.fmean(percent),
        (sum((v - statistics.fmean(percent)) ** 2 for v in percent) / 2) ** 0.5,
    )
    cells = row(text, "14 bn")
    assert cells[2:4] == ["3", f"{mean:.2f} ± {deviation:.2f}"] == ["3", "49.23 ± 0.93"]
    assert cells[4:7] == ["48.2 (digitised); 50.7 (unknown init)", "+1.0; -1.5", "inside 48.2 … 50.7"]
    assert cells[7] == "3 of 3 done; seed 3 under way, epoch 12 of 160"
    assert run_table(read([tmp_path])).count("paper-depth: 14 bn, seed") == 3


def test_what_is_not_finished_is_named_and_not_counted(tmp_path):
    write_folder(tmp_path / "s0", body("paper-depth", "14 all", 0.7, over=12), finished=False)
    text = studies(read([tmp_path]))
    assert row(text, "14 all")[2:] == [
        "0",
        "—",
        "90.5 (digitised)",
        "—",
        "—",
        "0 of 3 done; seed 0 under way, epoch 12 of 160",
    ]
    assert "70.0" not in text and "Not run: 8 bn, 14 bn, 32 bn" in text
    depths = next(one for one in drawings(read([tmp_path])) if one.name == "accuracy-by-depth")
    assert "ours, everything" not in depths.chart and "all: none yet" in depths.caption


def test_what_is_cut_never_stands_beside_a_published_figure_without_the_word(tmp_path):
    less = [one for one in PRESETS.values() if one.mark]
    assert {one.mark for one in less} == set(MARKS) and any(
        line.published for one in less for line in one.lines
    )
    for k, (name, line) in enumerate((one.name, line.name) for one in less for line in one.lines):
        write(tmp_path, str(k), body(name, line, 0.4 + k / 1000))
    text = markdown(read([tmp_path]), "Nothing.")
    sections = {match[1]: match[0] for match in re.finditer(r"### `([a-z0-9-]+)`.*?(?=\n##|\Z)", text, re.S)}
    for one in less:
        rows = [line for line in sections[one.name].splitlines() if line.startswith("|")][2:]
        assert (
            len(rows) == len(one.lines)
            and f"**{one.mark.capitalize()}, less than the study's" in sections[one.name]
        )
        for line, cells in zip(one.lines, (line.strip("| ").split(" | ") for line in rows), strict=True):
            assert cells[0] == f"{line.name} ({one.mark})"
            if line.published:
                assert one.mark in cells[4] and cells[5:7] == [f"not taken: {one.mark}", "—"]
    assert not re.search(r"[+-]\d+\.\d \|", text)
    for one in less:
        assert main(["table", one.name, "--out", str(tmp_path / "none")]) == 0


def test_a_marked_experiment_s_own_table_takes_no_difference(tmp_path, capfd):
    run = body("torri-lstm-25k", "bn", 0.59)
    write_folder(tmp_path / "torri-lstm-25k" / "bn-s0", run, finished=True)
    assert main(["table", "torri-lstm-25k", "--out", str(tmp_path)]) == 0
    said = capfd.readouterr().out
    assert "| bn | test accuracy | 1 of 3 | 59.0 | 67 (printed) | — |" in said
    assert "Smaller set, less than the study's" in said and "✗" not in said.split("\n\n")[2]
