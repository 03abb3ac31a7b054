"""Fixtures that several tests of the benchmarks share."""

import json

import pytest
import torch

from fastbn.engine.select import choose
from fastbn.engine.triton import tuning_table

PARTS = ("conditions", "launches", "convolutions", "rolling")


@pytest.fixture
def engine():
    """Return the engine that auto means here: natively compiled where there is a compiler."""
    return choose("auto", torch.device("cpu"), torch.float32)[0]


@pytest.fixture
def table(monkeypatch, tmp_path):
    """A table of this test's own: written by calling it with some of its parts' rows, and read as the
    shipped one is."""
    path = tmp_path / "configurations.json"
    monkeypatch.setattr(tuning_table, "TABLE", path)

    forget = tuning_table.shipped.cache_clear

    def write(**parts):
        path.write_text(json.dumps({part: {} if part == "conditions" else [] for part in PARTS} | parts))
        forget()

    write.path = path
    write()
    yield write
    forget()
