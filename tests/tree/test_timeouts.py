"""A test that hangs ends and names itself, alone and where two processes share the suite."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_timeout", reason="pytest-timeout is not installed")

TESTS = """
import threading

def test_before():
    pass

def test_that_waits_forever():
    threading.Event().wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_test_that_hangs_ends_and_is_named(tmp_path, processes):
    own = (Path(__file__).parents[1] / "conftest.py").read_text(encoding="utf-8")
    short = re.sub(r"^PLAIN, SLOW = \d+, \d+", "PLAIN, SLOW = 2, 2", own, flags=re.MULTILINE)
    assert short != own
    (tmp_path / "conftest.py").write_text(short, encoding="utf-8")
    (tmp_path / "test_two.py").write_text(TESTS, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-p",
        "no:cacheprovider",
        "-n",
        processes,
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "test_that_waits_forever" in said
    if processes == "0":
        assert "Timeout" in said and "threading.Event().wait()" in said
    else:
        assert "crashed while running" in said and "1 failed, 1 passed" in said
