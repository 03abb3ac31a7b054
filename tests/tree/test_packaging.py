"""What is built and installed holds everything: a wheel in a folder of its own trains; the sdist has the
sources of the kernels."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = {"fastbn/data/digits.csv.gz", "fastbn/data/DIGITS.md", "fastbn/py.typed"}
DATA |= {"fastbn/engine/native/algorithms.json", "fastbn/engine/triton/tuning.json"}
DATA |= {"fastbn/planning/step_rates.json"}
pytestmark = pytest.mark.slow


def shipped() -> set[str]:
    """Return every module, and the files that travel with them."""
    modules = {
        str(path.relative_to(ROOT)) for path in (ROOT / "fastbn").rglob("*.py") if "kernels" not in path.parts
    }
    kernels = {f"fastbn/kernels/triton/{path.name}" for path in (ROOT / "kernels" / "triton").glob("*.py")}
    kernels |= {
        f"fastbn/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "kernels" / "cpu").rglob("*")
        if path.suffix in (".h", ".cpp")
    }
    return modules | kernels | DATA


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    with open(ROOT / "setup.py") as own:
        fcntl.flock(own, fcntl.LOCK_EX)  # a build writes beside it; another process of these tests waits
        done = subprocess.run(
            [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)],
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def test_the_wheel_holds_everything_and_nothing_else_of_ours(built):
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == shipped()


def test_the_sdist_builds_the_same(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert shipped() <= names and "LICENSE" in names


def test_an_installed_wheel_trains(built, tmp_path):
    """It does so from a folder that holds the wheel's content alone, away from the checkout."""
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
        timeout=300,
    )
    environment = os.environ | {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path)}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )

    assert Path(python("-c", "import fastbn; print(fastbn.__file__)").stdout.strip()).is_relative_to(site)
    sizes = [
        "--depth",
        "8",
        "--width",
        "4",
        "--epochs",
        "1",
        "--dataset",
        "digits",
        "--limit-train",
        "64",
        "--limit-test",
        "32",
    ]
    assert python(str(site / "bin" / "fastbn"), "--version").stdout.startswith("fastbn ")
    done = python("-m", "fastbn.train", *sizes, "--out", "run")
    assert done.returncode == 0 and "ResNet-8 on digits" in done.stdout, done.stderr
    done = python("-m", "fastbn.evaluate", "run")
    assert done.returncode == 0 and "test accuracy" in done.stdout, done.stderr


def test_the_example_runs():
    here = {
        "cwd": ROOT,
        "env": os.environ | {"PYTHONPATH": str(ROOT)},
        "capture_output": True,
        "text": True,
        "timeout": 300,
    }
    done = subprocess.run([sys.executable, "examples/own_network.py"], **here)
    assert done.returncode == 0 and "3 convolutions with their BatchNorms" in done.stdout, done.stderr
