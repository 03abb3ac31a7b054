"""Every command of the README and the pages is run: extracted, not typed anew, with settings that take
seconds."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from runs import REPOSITORY
from test_docs import TEXTS, blocks, commands, run_python

PAGES = [name for name in TEXTS if commands(name) and name not in ("patches.md", "tpu.md")]  # see test_docs
SMALL = ["--epochs", "2", "--limit-train", "64", "--limit-test", "32"]  # none of them is in a folder's name
LAUNCHER = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
SLURM = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "8"}


def smaller(module: str, words: list[str], shared: str) -> list[str]:
    """Return a command's words with the digits in place of CIFAR-10, a shallow network and few images in
    place of what it asks for, a folder in place of a cluster's, the first of many parts."""
    words = [re.sub(r"\$(\w+)", lambda found: SLURM[found[1]], word) for word in words]
    words = [word.replace("{}", "0").replace("/shared", shared) for word in words if word != ":::"]
    words = [word for word in words if word not in ("$(seq", "0", "15)")] if "run" in words else words
    if module in ("fastbn.train", "fastbn.analyze"):
        words = [word.replace("cifar10", "digits") for word in words]
    if module == "fastbn.train" and "--explain" not in words:
        deep = words.index("--depth") + 1
        words[deep] = str(min(int(words[deep]), 14))
        return [*words, "--dataset", "digits", *SMALL]
    if module == "fastbn.evaluate" and words[0].startswith("pretrained/"):
        return [*words, "--dataset", "digits", "--limit-test", "32"]
    if module == "fastbn.experiments" and words[0] == "run":
        words[1] = "bn-then-all-cut40"
        return [*words, "--", "--dataset", "digits", "--depth", "8", *SMALL]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_commands_run(name, tmp_path, monkeypatch):
    """One after the other in one folder, as a reader would, after the page's Python."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrained").symlink_to(REPOSITORY / "pretrained")
    if name == "README.md":
        run_python(name, tmp_path)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for module, *words in commands(name):
        begun = rf"torchrun [^\n]*(\\\n[^\n]*)*-m {module} [^\n]*{re.escape(words[-1])}"
        launched = LAUNCHER if re.search(begun, TEXTS[name]) else ()
        done = subprocess.run(
            [sys.executable, "-m", *launched, module, *smaller(module, words, str(tmp_path / "shared"))],
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{module} {shlex.join(words)}: {done.stderr[-800:]}"


def test_what_benchmarks_are_called():
    """The modules and files of bench that the pages name are there."""
    said = "\n".join(block for name in TEXTS for block in blocks(name, "bash"))
    for module in set(re.findall(r"-m (bench[\w.]*)", said)):
        path = REPOSITORY / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for file in set(re.findall(r"(?:bash|python) ((?:bench|examples)/[\w/.]+)", said)):
        assert (REPOSITORY / file).exists(), file
