"""The choice of the data set that a run trains on, made once and said in its first line."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from pathlib import Path

from fastbn.data.cifar import find, read_cifar
from fastbn.data.cifar_files import CIFAR10, CIFAR100, Cifar
from fastbn.data.class_folders import read_folder
from fastbn.data.digits import load_digits
from fastbn.data.download import DownloadFailed, fetch_cifar
from fastbn.data.imagenet.pool import TIMEOUT
from fastbn.data.imagenet.stream import Stream, read_imagenet
from fastbn.data.images import Images
from fastbn.data.names import DATASETS, DEFAULT_DIR, READERS
from fastbn.errors import UsageError
from fastbn.files import is_file, look, shown
from fastbn.files.access import access

CIFARS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


@dataclass(frozen=True, eq=False)
class Loaded:
    """A data set, and how it was chosen."""

    train: Images | Stream
    test: Images | Stream
    name: str  # what it is: never "auto"
    why: str  # a phrase for people


def load(
    dataset: str,
    data_dir: str | Path,
    download: bool = False,
    size: int = 32,
    default_dir: str | Path | None = DEFAULT_DIR,
    timeout: float = TIMEOUT,
) -> Loaded:
    """Return the data set called `dataset`, one of DATASETS.

    "auto" is CIFAR-10 where it lies in `data_dir` or can be downloaded there, else the embedded digits; a
    damaged CIFAR-10 is an error all the same. Any other name is that set or a UsageError. Only `default_dir`
    (None: no folder) is downloaded into, unless `download`. `size` is for "folder" and "imagenet": the side
    in pixels that their images are brought to; `timeout` is for "imagenet": the seconds after which a process
    that decodes and does not answer is given up.

    Raises UsageError for what is missing, damaged or can't be looked at, MachineError where the memory runs
    out.
    """
    may_download = download or (default_dir is not None and Path(data_dir) == Path(default_dir))
    if dataset not in DATASETS:
        raise UsageError(f"no data set is called {shown(dataset)!r}; choose one of {', '.join(DATASETS)}")
    with access(f"data set {dataset}", data_dir):
        return _load(dataset, data_dir, may_download, size, timeout)


def _load(dataset: str, data_dir: str | Path, may_download: bool, size: int, timeout: float) -> Loaded:
    if dataset != "digits":
        look(data_dir)
    if dataset in CIFARS:
        return _cifar(CIFARS[dataset], Path(data_dir), may_download)
    if dataset == "digits":
        return Loaded(*load_digits(), "digits", "digits, embedded")
    if dataset == "folder":
        return Loaded(*read_folder(data_dir, size), "folder", f"class folders in {data_dir}")
    if dataset in READERS:
        train, test = pkgutil.resolve_name(READERS[dataset])(data_dir)
        return Loaded(train, test, dataset, f"{dataset} in {data_dir}")
    if dataset == "imagenet":
        train, test = read_imagenet(data_dir, size, timeout=timeout)
        return Loaded(train, test, "imagenet", f"{train.source.layout} in {data_dir}")
    return _auto(CIFARS["cifar10"], Path(data_dir), may_download)


def _auto(spec: Cifar, data_dir: Path, may_download: bool) -> Loaded:
    if find(spec, data_dir) or is_file(data_dir / spec.archive):
        return _cifar(spec, data_dir, may_download)  # damaged, it is an error: never the digits in its place
    obstacle = "--download was not given"
    if may_download:
        try:
            return _cifar(spec, data_dir, may_download)
        except DownloadFailed as failed:
            obstacle = f"could not be downloaded ({failed.reason})"
    return Loaded(
        *load_digits(), "digits", f"digits, embedded: {spec.title} is not in {data_dir} and {obstacle}"
    )


def _cifar(spec: Cifar, data_dir: Path, may_download: bool) -> Loaded:
    why = f"{spec.title} found in {data_dir}"
    if not find(spec, data_dir):
        packed = is_file(data_dir / spec.archive)
        if not packed and not may_download:
            looked = f"looked for the folder {spec.folders}, and for {spec.archive}"
            remedies = f"add --download, or put the official folder there ({spec.url})"
            raise UsageError(f"{spec.title} is not in {data_dir} ({looked}); {remedies}")
        fetch_cifar(spec, data_dir)
        why = f"{spec.title} unpacked in {data_dir}" if packed else f"{spec.title} downloaded to {data_dir}"
    return Loaded(*read_cifar(spec, data_dir), spec.name, why)
