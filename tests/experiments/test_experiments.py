"""python -m fastbn.experiments: every preset is sound and runs; what is done is not done again; the table
of what is there."""

import csv
import dataclasses
import re

import pytest
from runs import python
from small_experiments import pretend

from fastbn.data.names import DATASETS
from fastbn.experiments.__main__ import main
from fastbn.experiments.hours import measure
from fastbn.experiments.hours.estimate import Rate
from fastbn.experiments.listing import show
from fastbn.experiments.preset import GRADES, Line, Preset, Quick, jobs
from fastbn.experiments.presets import PRESETS
from fastbn.experiments.table import table
from fastbn.run.build import spec_of
from fastbn.train import main as train_main

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = [
    *(
        "paper-depth",
        "paper-width",
        "paper-what-trains",
        "paper-bn-init",
        "paper-weight-init",
        "paper-random-params",
        "paper-frozen-bn",
    ),
    *(
        "paper-imagenet",
        "wandb-full-vs-bn",
        "wandb-batch-size",
        "wandb-schedules",
        "wandb-all-frozen",
        "keras-resnets",
    ),
    *("keras-resnets-cut10", "torri-mlp", "torri-lstm", "torri-lstm-glove"),
    *(
        "torri-lstm-25k",
        "torri-lstm-glove-25k",
        "torri-lstm-25k-why",
        "bn-then-all",
        "lower-layers",
        "instance-norm",
    ),
    *("trained-parameters", "bn-then-all-cut40", "lower-layers-cut40", "instance-norm-cut40"),
]
TINY = ["--limit-train", "48", "--limit-test", "16", "--epochs", "1", "--batch-size", "24", "--device", "cpu"]


RATE = Rate(100e9)


def test_list_names_them_all_and_imports_no_torch():
    said = python(
        "import sys; from fastbn.experiments.__main__ import main; main(['list']); print('torch' in "
        "sys.modules)"
    ).stdout
    lines, _, torch = said.partition("GFLOP/s here")
    named = [line.split()[0] for line in lines.splitlines() if re.match(r"[a-z]+-", line)]
    assert named == NAMES == list(PRESETS) and torch.endswith("False\n")
    assert max(map(len, said.splitlines())) < 80 and lines.count("no estimate") == 1


@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_sound(name, quick, tmp_path):
    preset = PRESETS[name]
    assert len({line.name for line in preset.lines}) == len(preset.lines)
    if quick and isinstance(preset.quick, str):
        pytest.skip(f"no quick cut: {preset.quick}")
    assert not quick or set(preset.quick.lines) <= {line.name for line in preset.lines}
    assert all(
        figure.grade in GRADES and 0 < figure.value < 100
        for line in preset.lines
        for figure in line.published
    )
    found = jobs(preset, tmp_path, quick)
    if name == "paper-imagenet" and not quick and "imagenet" not in DATASETS:
        pytest.skip("this version reads no ImageNet")
    assert (
        len({job.out for job in found})
        == len(found)
        == len(preset.cut(quick)) * (1 if quick else preset.seeds)
    )
    for job in found:
        config = job.config
        assert (config.seed, config.out) == (job.seed, str(job.out)) and config.dataset in DATASETS
        spec_of(config, 10, 7)
        for setting, value in job.line.settings.items():
            assert config.asdict()[setting] == value
    assert all(f"--train {line.settings['train']}" in show(preset, RATE) for line in preset.lines)


def test_hours_are_a_step_of_each_line_measured_here(monkeypatch, capfd):
    small = {"depth": 8, "width": 4, "dataset": "cifar10", "epochs": 18}
    lines = (
        Line("bn", small),
        Line("large", {**small, "batch_size": 2048}),
        Line("usual", {"depth": 8, "width": 4, "dataset": "digits"}),
        Line("none", {**small, "train": "none"}),
        Line("words", {"family": "lstm", "dataset": "tweets"}),
    )
    preset = Preset("small", "", "", "", lines, Quick(("bn",), {"epochs": 1, "limit_train": 6_400}))
    monkeypatch.setattr(measure, "measured", lambda step, batch, repeats: 0.004 * batch)
    monkeypatch.setitem(PRESETS, "small", preset)
    assert main(["show", "small", "--hours"]) == 0
    out = capfd.readouterr().out
    # 50,000 images of 4 ms, 18 epochs: an hour; 1,437 of them, 15 epochs
    for line in ("bn: 1.0 hours a seed", "large: 1.0 hours a seed", "usual: 1 minutes", "none: 0 minutes"):
        assert f"    {line}" in out
    assert "words: not estimated, its data are words" in out
    assert "6.1 hours in all on this machine, 3 seeds" in out
    assert main(["show", "small", "--hours", "--quick"]) == 0
    out = capfd.readouterr().out
    assert "0 minutes in all on this machine, one seed" in out and "    large:" not in out


def test_published_figures():
    """The figures are those of the studies, by line."""

    def published(name, of="test_accuracy"):
        return {
            line.name: next((f.value for f in line.published if f.of == of), None)
            for line in PRESETS[name].lines
        }

    assert published("paper-depth")["866 bn"] == 82.0 and published("paper-depth")["110 all"] == 93.4
    assert (
        published("paper-depth", "gamma_below_0.01")["110 bn"] == 27
        and published("paper-depth", "gamma_below_0.01")["110 all"] == 9
    )
    assert (
        published("paper-width")["14 width 512 bn"] == 73.4
        and published("paper-what-trains")["110 shortcut+output"] == 19.1
    )
    assert published("wandb-batch-size") == {
        "bn batch 256": 48.9,
        "bn batch 512": 44.5,
        "bn batch 1024": 42.6,
        "bn batch 2048": 39.1,
    }
    assert (
        published("keras-resnets", "train_accuracy")["152 bn"] == 62
        and published("keras-resnets")["101 bn"] == 52
    )
    assert published("torri-lstm-glove") == {"all": 78.0, "bn": 74.0}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of tweets and vectors for them."""
    folder = tmp_path_factory.mktemp("text")
    with open(folder / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [str(4 * (i % 2)), i, "", "", "", "love sun" if i % 2 else "hate rain"] for i in range(100)
        )
    (folder / "g.txt").write_text("love 1 2 3\nrain 3 2 1\n")
    return folder


def tiny(job, text):
    """Return the job's arguments with next to no data, and narrow."""
    more = [*TINY, "--width", "16" if job.config.family == "mlp" else "8"]
    if job.config.family == "lstm":
        more += ["--data-dir", str(text), "--embedding", "3"] + (
            ["--vectors", str(text / "g.txt")] if "vectors" in dict(job.config.study) else []
        )
    else:
        more += ["--dataset", "digits"]
    return [*job.arguments, *more, "--out", str(job.out)]


CHEAP = ("wandb-all-frozen", "bn-then-all", "torri-lstm-glove")


@pytest.mark.parametrize(
    "name", [name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_every_preset_runs(name, tmp_path, text):
    """Its quick lines, or its first two where it has no quick cut; one epoch of two steps."""
    preset = PRESETS[name]
    if isinstance(preset.quick, str):
        firsts = tuple(line.name for line in preset.lines[:2])
        preset = dataclasses.replace(preset, quick=Quick(firsts, {}))
    for job in jobs(preset, tmp_path, quick=True):
        assert train_main(tiny(job, text)) == 0, job.line.name
    tried = [
        dataclasses.replace(job, arguments=tuple(tiny(job, text)[:-2]))
        for job in jobs(preset, tmp_path, quick=True)
    ]
    said = table(preset, tried, True)
    rows = re.findall(r"^\|.*\| 1 of 1 \| \d+\.\d \|", said, re.M)
    assert len(rows) >= len(preset.quick.lines) and f"{len(tried)} of {len(tried)} runs finished" in said
    assert "not the experiment" in said and "✓" not in said and "✗" not in said


def test_the_table_of_what_is_there(tmp_path):
    preset = PRESETS["paper-width"]
    more = ["--epochs", "2"]
    found = {job.out.name: job for job in jobs(preset, tmp_path, more=more)}
    pretend(found["14-width-16-bn-s0"], [0.3, 0.47], 2)
    pretend(found["14-width-16-bn-s1"], [0.3, 0.49], 2)
    pretend(found["14-width-16-bn-s2"], [0.2], 2)
    pretend(found["14-width-32-bn-s0"], [0.3, 0.4], 2)
    pretend(found["14-width-64-bn-s1"], [0.3], 2)
    found["14-width-128-bn-s0"].out.mkdir()
    (found["14-width-128-bn-s0"].out / "error.txt").write_text("the loss stopped being finite\n")
    said = table(preset, list(found.values()), False)
    rows = {line.split("|")[1].strip(): line for line in said.splitlines() if line.startswith("| 14")}
    assert "3 of 54 runs finished" in said
    assert (
        rows["14 width 16 bn"]
        == "| 14 width 16 bn | test accuracy | 2 of 3 | 48.0 ± 1.4 | 48.2 (digitised) | ✓ -0.2 |"
    )
    assert (
        rows["14 width 32 bn"]
        == "| 14 width 32 bn | test accuracy | 1 of 3 | 40.0 | 53.3 (digitised) | ✗ -13.3 |"
    )
    assert (
        rows["14 width 64 bn"]
        == "| 14 width 64 bn | test accuracy | 0 of 3 | (epoch 1 of 2: 30.0) | 59.5 (digitised) | — |"
    )
    assert "| failed: the loss stopped being finite |" in rows["14 width 128 bn"]
    assert (
        rows["14 width 512 all"] == "| 14 width 512 all | test accuracy | 0 of 3 | — | 95.2 (digitised) | — |"
    )
    assert "±0.5" in said


def test_a_figure_that_no_run_measures(tmp_path):
    """Top-5 is published, and not among a run's metrics: said, not taken for unfinished."""
    found = jobs(PRESETS["paper-imagenet"], tmp_path)
    pretend(found[-1], [0.1] * 90, 90)
    said = table(PRESETS["paper-imagenet"], found, False)
    assert "| 200 bn | test accuracy | 1 of 1 | 10.0 | — | — |" in said
    assert "| 200 bn | top-5 test accuracy | 1 of 1 | not measured | 32 (printed) | — |" in said


def test_a_run_with_other_settings_is_named(tmp_path, capfd):
    job = jobs(PRESETS["paper-width"], tmp_path)[0]
    pretend(dataclasses.replace(job, arguments=(*job.arguments, "--lr", "0.2")), [0.4] * 160)
    assert main(["table", "paper-width", "--out", str(tmp_path)]) == 2
    assert (
        "14-width-16-bn-s0 holds a run with other settings (lr: saved 0.2, asked 0.1"
        in capfd.readouterr().err
    )
