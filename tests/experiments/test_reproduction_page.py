"""The reproduction's page and figures: what the command writes, and what it refuses."""

import re
import xml.dom.minidom

import pytest
from records import body, write

from fastbn.errors import UsageError
from fastbn.experiments.__main__ import main
from fastbn.experiments.figures import drawings
from fastbn.experiments.presets import PRESETS
from fastbn.experiments.records import read
from fastbn.experiments.reproduction import DISCUSSION, told
from fastbn.page.page import standalone


def test_the_discussion_s_figures_are_the_records(tmp_path):
    for seed, value in enumerate((0.48, 0.5)):
        write(tmp_path, f"s{seed}", body("paper-depth", "14 bn", value, seed))
    runs = read([tmp_path])
    assert (
        told("We have {paper-depth: 14 bn}, {n} apart.", runs) == "We have 49.00 ± 1.41% (n = 2), {n} apart."
    )
    for wrong in ("{paper-depth: 14 all}", "{paper-depth: 15 bn}", "{paper-dept: 14 bn}"):
        with pytest.raises(UsageError, match="paper-dept"):
            told(wrong, runs)


def test_the_command(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bench" / "results", "x", body("paper-depth", "14 bn", 0.49))
    (tmp_path / "reproduction").mkdir()
    assert main(["table", "--all"]) == 0 and "| 14 bn | test accuracy | 1 | 49.00 |" in capfd.readouterr().out
    assert main(["table", "--all", "--markdown"]) == 2 and DISCUSSION in capfd.readouterr().err
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / DISCUSSION).write_text("## Why\n\n{paper-depth: 14 bn}\n")
    assert (
        main(["table", "--all", "--markdown"]) == 0
        and "docs/reproduction.md: written" in capfd.readouterr().out
    )
    assert "## Why\n\n49.00% (n = 1)\n\n## Figures" in (tmp_path / "docs" / "reproduction.md").read_text()
    assert (tmp_path / "docs" / "figures" / "accuracy-by-depth.svg").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["table"], "--all"),
        (["table", "paper-depth", "--all"], "leave out NAME"),
        (["table", "--all", "--records", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capfd, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"config": 1, "summary": {}, "epochs": []}',
        '{"config": {"depth": 13}, "summary": {}, "epochs": []}',
    ],
)
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "run-x.json").write_text(text)
    with pytest.raises(UsageError, match=r"run-x\.json"):
        read([tmp_path])


def test_the_figures_when_everything_is_there(tmp_path):
    """Every line that a figure shows, three seeds: nothing is named as missing, and each series is drawn."""
    names = [
        (name, line.name)
        for name in ("paper-depth", "wandb-batch-size", "trained-parameters")
        for line in PRESETS[name].lines
    ]
    counts = {"low": -1.0, "width": 0.5, "counts": [0, 1, 5, 4, 3, 2, 1, 1], "below_0.01": 0.2}
    for k, (name, line) in enumerate(names):
        for seed in range(3):
            content = body(name, line, 0.3 + k / 100 + seed / 200, seed, gammas=counts)
            content["epochs"][:-1] = [{**one, "test_accuracy": 0.2} for one in content["epochs"][:-1]]
            write(tmp_path, f"{k}-{seed}", content)
    found = {one.name: one for one in drawings(read([tmp_path]))}
    assert not [
        one.caption for one in found.values() if re.search("none yet|not finished", one.caption, re.I)
    ]
    assert all(
        text in found["accuracy-by-depth"].chart
        for text in ("ours, everything", "ours, BatchNorm only", "866 → ")
    )
    assert all(
        found["accuracy-by-batch"].chart.count(f"<title>{name}: ") == 4 for name in ("W&amp;B report", "ours")
    )
    assert found["trained-parameters"].chart.count('class="whisker"') == 4
    assert all(text in found["gammas"].chart for text in ("BatchNorm only, n = 3", "everything, n = 3"))
    assert all(
        text in found["epochs-to-accuracy"].chart
        for text in ("everything, seed 0", "the output layer, seed 0")
    )
    for one in found.values():
        xml.dom.minidom.parseString(standalone(one.chart, one.title))
