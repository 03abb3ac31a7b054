"""Every command and code block of the README and the pages is run, or read as the command line reads it; the
site names pages that are there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap

import pytest
from runs import REPOSITORY
from torch import nn

import fastbn
from fastbn.data import load
from fastbn.experiments.presets import PRESETS
from fastbn.settings.arguments import parse

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in PAGES}
# pages whose blocks other tests run: test_trainers, .ci/networks, test_ranks_ddp, test_patches_page
ELSEWHERE = {"trainers.md", "hub.md", "many-devices.md", "patches.md"}


def blocks(name: str, kind: str) -> list[str]:
    """Return the code blocks of one kind in a page."""
    return [textwrap.dedent(b) for b in re.findall(rf"^```{kind}\n(.*?)^```$", TEXTS[name], re.M | re.S)]


def commands(name: str) -> list[list[str]]:
    """Return every call of a module of fastbn's in a page, as words."""
    found = []
    for block in blocks(name, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;|\|", line.partition(" #")[0]):
                words = part.split()
                if "-m" in words and words[words.index("-m") + 1].startswith("fastbn."):
                    found.append(shlex.split(part)[words.index("-m") + 1 :])
    return found


def has_places(words: list[str]) -> bool:
    """Tell whether a command has places for the reader's own."""
    return any(re.search(r"[<>$…]|\b[A-Z]{3,}\b", word) for word in words)


CALLS = [(name, call) for name in TEXTS for call in commands(name)]


def test_there_are_commands():
    assert len(CALLS) > 10


@pytest.mark.parametrize("name, call", CALLS, ids=[f"{name}: {' '.join(call)[:50]}" for name, call in CALLS])
def test_a_command_is_one(name, call, tmp_path, monkeypatch):
    """Its options are options; a preset is there."""
    module, *words = call
    if has_places(words):
        pytest.skip("it has places for the reader's own")
    monkeypatch.chdir(tmp_path)
    if module in ("fastbn.train", "fastbn.train_xla") and "--resume" not in words:
        assert parse(words) is not None
    elif module == "fastbn.experiments" and words[0] in ("show", "run"):
        assert words[1] in PRESETS
    else:
        assert (REPOSITORY / module.replace(".", "/")).with_suffix(".py").exists() or (
            REPOSITORY / module.replace(".", "/") / "__main__.py"
        ).exists()


SHORT = ["networks.md"]


@pytest.mark.parametrize("name", [*SHORT, pytest.param("index.md", marks=pytest.mark.slow)])
def test_the_code_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(name, "python")
    exec(compile(code, name, "exec"), {"__name__": name})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(name for name in TEXTS if name not in {*SHORT, *ELSEWHERE, "index.md"})
)
def test_the_code_runs_on_what_the_reader_has(name, tmp_path, monkeypatch):
    """A network and data of one's own; shallow networks, one epoch. What needs a cluster is left out."""
    monkeypatch.chdir(tmp_path)
    run_python(name, tmp_path)


def run_python(name, folder):
    """Run a page's Python on shallow networks for an epoch; what needs a cluster is left out."""
    digits = load("digits", str(folder))
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    names = {"fastbn": fastbn, "your_network": own, "train": digits.train.limit(64), "test": None}
    for block in blocks(name, "python"):
        if "import ray" not in block:
            code = re.sub(r"epochs=\d+", "epochs=1", re.sub(r"depth=\d+", "depth=8", block))
            exec(compile(code, name, "exec"), names)


def test_the_first_command_s_accuracy_is_the_record_s():
    newest = max(REPOSITORY.glob("bench/results/runs-resnet14-digits-first-command-*.json"))
    every = json.loads(newest.read_text(encoding="utf-8"))["all"]
    mean, deviation, least, most = (
        f"{every[name]:.3f}" for name in ("mean", "standard_deviation", "least", "most")
    )
    said = " ".join(TEXTS["README.md"].split())
    assert f"accuracy of {mean} ± {deviation} (five seeds" in said and f"between {least} and {most})" in said


def test_the_first_sentence_says_what_the_tables_say():
    ratios = re.findall(r"^\|[^|]*\|[^|]*\|[^|]*: ([\d.]+)× \|", TEXTS["README.md"], re.M)
    first = TEXTS["README.md"].partition("![")[0]
    assert len(ratios) > 8 and f"{min(ratios)} to {max(ratios)} times as fast as stock" in first


def test_all_code_is_python():
    for name in TEXTS:
        for code in blocks(name, "python"):
            compile(code, name, "exec")


def test_the_site_names_pages_that_are_there():
    said = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"\s([\w-]+\.md)$", said.partition("nav:")[2], re.M))
    assert {"index.md", "api.md", "networks.md"} <= named <= TEXTS.keys()


def test_the_requirements_agree():
    """They differ by triton alone, which comes with CUDA."""

    def pins(name):
        lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
        return {line for line in lines if line and not line.startswith(("#", "-"))}

    assert pins("requirements.txt") - pins("requirements-cpu.txt") == {
        'triton==3.7.1; sys_platform == "linux"'
    }
    assert pins("requirements-cpu.txt") < pins("requirements.txt")


def test_windows_is_told_in_a_line():
    code = "import sys; sys.platform = 'win32'; sys.modules['fcntl'] = None; import fastbn"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: fastbn runs on Linux and macOS")


@pytest.mark.slow
def test_the_first_hour(tmp_path):
    done = subprocess.run(
        [str(REPOSITORY / ".ci" / "first-hour"), "--installed"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and done.stdout.endswith("first hour: done\n"), done.stderr[-500:]
