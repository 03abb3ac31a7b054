"""A reader of CIFAR-10 and CIFAR-100 in either official form; every file is verified before a byte of it is
used."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from fastbn.data.cifar_files import Cifar, CifarForm, File
from fastbn.data.images import IMAGENET_MEAN, IMAGENET_STD, Images
from fastbn.data.unpickle import read_batch
from fastbn.errors import UsageError
from fastbn.files import is_folder, opened, reason

PIXELS = 3 * 32 * 32
MOST = 1 << 28  # bytes of a file whose official size is not known here; the largest has 186 million


def find(spec: Cifar, data_dir: str | Path) -> CifarForm | None:
    """Return the form whose folder lies in `data_dir`, whole or not; None where neither does."""
    return next((form for form in spec.forms if is_folder(Path(data_dir) / form.folder)), None)


def read_cifar(spec: Cifar, data_dir: str | Path) -> tuple[Images, Images]:
    """Return (train, test) from the official folder in `data_dir`; UsageError where it is absent or a file is
    not the official one."""
    form = find(spec, data_dir)
    if form is None:
        raise UsageError(
            f"{spec.title} is not in {data_dir}: no folder {spec.folders} there; unpack {spec.url} into it"
        )
    folder = Path(data_dir) / form.folder
    return _read_split(spec, form, folder, form.train), _read_split(spec, form, folder, form.test)


def verify(path: Path, file: File, remedy: str | None = None) -> bytes:
    """Return the file's content, once its size and MD5 are the official ones."""
    remedy = remedy or f"delete the folder {path.parent} and download it again"
    try:
        with opened(path, MOST if file.size is None else None) as content:
            size = os.fstat(content.fileno()).st_size
            if file.size is not None and size != file.size:
                raise UsageError(f"{path} is damaged: expected {file.size:,} bytes, found {size:,}; {remedy}")
            blob = content.read(size)
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; {remedy}") from None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {reason(error)}; check its permissions, or {remedy}"
        ) from None
    digest = hashlib.md5(blob, usedforsecurity=False).hexdigest()
    if digest != file.md5:
        raise UsageError(f"{path} is damaged: expected MD5 {file.md5}, found {digest}; {remedy}")
    return blob


def _read_split(spec: Cifar, form: CifarForm, folder: Path, files: tuple[File, ...]) -> Images:
    rows, labels = [], []
    for file in files:
        path = folder / file.name
        blob = verify(path, file)
        pixels, classes = (
            read_batch(blob, str(path), form.labels_key)
            if form.pickled
            else _read_records(blob, path, form.label_bytes)
        )
        rows.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))  # (n, 32, 32, 3) from planes
        labels.append(classes)
    return Images(
        torch.from_numpy(np.ascontiguousarray(np.concatenate(rows))),
        torch.from_numpy(np.concatenate(labels)),
        spec.classes,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        name=spec.name,
        flip=True,
        pad=4,
        default_epochs=160,
    )


def _read_records(blob: bytes, path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 3072) uint8 and (n,) int64 from records of `label_bytes` labels, of which the last counts,
    and the pixels."""
    record = label_bytes + PIXELS
    if not blob or len(blob) % record:
        raise UsageError(
            f"{path} holds {len(blob):,} bytes, not whole records of {record:,}; delete it and download it "
            "again"
        )
    records = np.frombuffer(blob, np.uint8).reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)
