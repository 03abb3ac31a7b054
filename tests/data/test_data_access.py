"""Paths that can't be looked at and memory that runs out, whichever data set is read: one line."""

import os

import pytest
from damage import refused

from fastbn.data import DATASETS, datasets, digits, load
from fastbn.errors import MachineError


@pytest.mark.parametrize("dataset", sorted(set(DATASETS) - {"digits"}))
@pytest.mark.parametrize(
    "path",
    ["a" * 300, "a\0b", "x\ny/z", "loop", "\udcff"],
    ids=["long", "nul", "newline", "loop", "not utf-8"],
)
def test_a_path_that_cannot_be_looked_at_is_one_line(tmp_path, monkeypatch, dataset, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    if dataset == "auto" and path in ("x\ny/z", "\udcff"):
        assert load(dataset, path).name == "digits"  # there is no such folder
    else:
        refused(load, dataset, path, match=".")


@pytest.mark.parametrize("dataset", sorted(set(DATASETS) - {"digits"}))
def test_a_folder_without_permission_is_one_line(tmp_path, monkeypatch, dataset):
    def denied(path, *more, real=os.stat, **options):
        if "locked" in os.fspath(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *more, **options)

    monkeypatch.setattr(os, "stat", denied)
    refused(load, dataset, tmp_path / "locked" / "x", match="Permission denied")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OSError(12, "Cannot allocate memory"),
    ],
)
@pytest.mark.parametrize(
    ("dataset", "reader"),
    [("digits", "load_digits"), ("folder", "read_folder"), ("imagenet", "read_imagenet")],
)
def test_memory_that_runs_out_while_data_are_read_is_one_line(tmp_path, monkeypatch, error, dataset, reader):
    monkeypatch.setattr(datasets, reader, lambda *_, **__: (_ for _ in ()).throw(error))
    refused(load, dataset, tmp_path, match=f"data set {dataset}: the memory ran out", kind=MachineError)


def test_other_errors_are_not_taken_for_memory(monkeypatch):
    monkeypatch.setattr(datasets, "load_digits", lambda: (_ for _ in ()).throw(RuntimeError("a mistake")))
    with pytest.raises(RuntimeError, match="a mistake"):
        load("digits", "data")


def test_a_damaged_installation_is_said(tmp_path, monkeypatch):
    (tmp_path / "digits.csv.gz").write_bytes(b"x")
    monkeypatch.setattr(digits, "files", lambda package: tmp_path)
    refused(load, "digits", "data", match="digits.csv.gz, are damaged .*; install fastbn again")
