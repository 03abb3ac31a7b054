"""The kinds of files that others made and fastbn reads: how a small one is made, how it is read, and what
must be true of what was read.

A kind is a function `make(folder)` -> (the files that may be damaged, a function that reads them, whether
their bytes are verified). The reader returns arrays by name, checked to be sound; of a kind that is verified
they are those of the undamaged file.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
from pathlib import Path

import data_cifar
import data_stream
import numpy as np
import torch
from safetensors.torch import save_file

from fastbn.data import digits
from fastbn.data.cifar import read_cifar
from fastbn.data.cifar_files import File
from fastbn.data.class_folders import read_folder
from fastbn.data.download import fetch_cifar
from fastbn.data.imagenet import read_imagenet
from fastbn.experiments.torri.glove import read_glove
from fastbn.experiments.torri.tweets import read_tweets
from fastbn.models.resnet import FastBNOnlyResNet

KINDS = {}


def kind(make):
    KINDS[make.__name__] = make
    return make


def images(*sets):
    """Return what `Images` hold, which is sound."""
    for one in sets:
        assert (
            one.images.dtype == torch.uint8
            and one.images.shape[3] == 3
            and len(one.images) == len(one.labels)
        )
        assert int(one.labels.min()) >= 0 and int(one.labels.max()) < len(one.classes) <= 1_000
    return {f"{name}{k}": getattr(one, name) for k, one in enumerate(sets) for name in ("images", "labels")}


def cifar(folder, form, renewed):
    """renewed: the MD5s are those of the damaged files, as if nobody had looked."""
    spec, blobs, *_ = data_cifar.tiny()
    data_cifar.write(blobs, form, folder)
    paths = sorted(path for path in (folder / form).iterdir() if path.name != "meta")

    def renew(file):
        path = folder / form / file.name
        return (
            File(file.name, hashlib.md5(path.read_bytes()).hexdigest())
            if path.is_file() and path.stat().st_size < 1e7
            else file
        )

    def read():
        seen = spec
        if renewed:
            forms = [
                dataclasses.replace(f, train=tuple(map(renew, f.train)), test=tuple(map(renew, f.test)))
                for f in spec.forms
            ]
            seen = dataclasses.replace(spec, forms=tuple(forms))
        return images(*read_cifar(seen, folder))

    return paths, read, not renewed


@kind
def cifar_binary(folder):
    return cifar(folder, "tiny-bin", False)


@kind
def cifar_binary_unverified(folder):
    return cifar(folder, "tiny-bin", True)


@kind
def cifar_pickle(folder):
    return cifar(folder, "tiny-py", False)


@kind
def cifar_pickle_unverified(folder):
    return cifar(folder, "tiny-py", True)


@kind
def cifar_tar(folder):
    spec, blobs, *_ = data_cifar.tiny()
    path, count = folder / spec.archive, iter(range(10**6))
    path.write_bytes(data_cifar.archive(blobs))

    def read():
        target = folder / f"{next(count)}"
        target.mkdir()
        path.rename(target / spec.archive)
        try:
            whole = (target / spec.archive).is_file() and (target / spec.archive).stat().st_size < 1e8
            md5 = hashlib.md5((target / spec.archive).read_bytes()).hexdigest() if whole else spec.md5
            fetch_cifar(dataclasses.replace(spec, md5=md5), target, progress=False)
            return images(*read_cifar(spec, target))
        finally:
            (target / spec.archive).rename(path)

    return [path], read, True


@kind
def embedded_digits(folder):
    path = folder / "digits.csv.gz"
    path.write_bytes(digits.files("fastbn.data").joinpath("digits.csv.gz").read_bytes())

    def read():
        before, digits.files = digits.files, lambda package: folder
        try:
            return images(*digits.load_digits())
        finally:
            digits.files = before

    return [path], read, True


@kind
def class_folders(folder):
    for k, suffix in enumerate(("png", "jpg", "bmp", "webp", "png", "jpg")):
        for split in ("train", "test"):
            path = folder / split / "ab"[k % 2] / f"{k}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = data_stream.Image.open(io.BytesIO(data_stream.content(k, "PNG"))).convert("RGB")
            image.convert("I;16" if k == 4 else "RGB").save(path)
    return sorted(folder.glob("*/*/*")), lambda: images(*read_folder(folder, 16)), False


def streamed(*streams):
    """Return an epoch of the first, the centres of the second, sound."""
    streams[0].begin(0, 0)
    batches = [*streams[0].batches(8), *streams[1].held_out(8)]
    for x, labels in batches:
        assert (
            x.isfinite().all()
            and x.shape[1:] == (3, 16, 16)
            and int(labels.min()) >= 0
            and int(labels.max()) < len(streams[0].classes)
        )
    assert len(streams[0].classes) <= 1_000
    return {"x": torch.cat([x for x, _ in batches]), "labels": torch.cat([labels for _, labels in batches])}


@kind
def streamed_folders(folder):
    data_stream.folders(folder, 12, 6)
    return sorted(folder.glob("*/*/*")), lambda: streamed(*read_imagenet(folder, 16, workers=0)), False


@kind
def shards(folder):
    data_stream.shards(folder / "data", (6, 5), 5)
    return (
        sorted(folder.glob("data/*.tar")),
        lambda: streamed(*read_imagenet(folder / "data", 16, workers=0)),
        False,
    )


@kind
def shards_index(folder):
    data_stream.shards(folder / "data", (6, 5), 5)
    read = functools.partial(read_imagenet, folder / "data", 16, workers=0)
    read()
    return sorted(folder.glob("cache/fastbn/shards-*.npz")), lambda: streamed(*read()), True


@kind
def tweets(folder):
    with open(folder / "tweets.csv", "w", encoding="iso-8859-1", newline="") as file:
        for k in range(150):
            csv.writer(file).writerow([4 * (k % 2), k, "Mon", "NO", "me", f'a "quoted" café, number {k % 7}'])

    def read():
        sets = read_tweets(folder)
        for one in sets:
            assert int(one.words.min()) >= 0 and int(one.words.max()) < len(one.vocabulary)
            assert (
                int(one.lengths.min()) >= 1
                and int(one.lengths.max()) <= one.words.shape[1]
                and set(one.labels.tolist()) <= {0, 1}
            )
        return {
            f"{name}{k}": getattr(one, name)
            for k, one in enumerate(sets)
            for name in ("words", "lengths", "labels")
        }

    return [folder / "tweets.csv"], read, False


def vectors(path):
    place, found = read_glove(path, 5)
    assert (
        np.isfinite(found).all()
        and found.dtype == np.float32
        and found.shape[1] == 5
        and all(0 <= k < len(found) for k in place.values())
    )
    return {
        "vectors": torch.from_numpy(np.array(found)),
        **{repr(word): torch.tensor(row) for word, row in place.items()},
    }


def glove_file(folder):
    numbers = np.random.default_rng(0).normal(size=(40, 5)).round(4)
    (folder / "g.txt").write_text(
        "".join(f"wörd{k} {' '.join(map(str, row))}\n" for k, row in enumerate(numbers))
    )
    return folder / "g.txt"


@kind
def glove_text(folder):
    path = glove_file(folder)
    return [path], lambda: vectors(path), False


@kind
def glove_kept_copies(folder):
    path = glove_file(folder)
    vectors(path)
    return sorted(folder.glob("g.txt.fastbn.*")), lambda: vectors(path), True


def weights(path, write, verified):
    def model(seed):
        return FastBNOnlyResNet(8, width=2, seed=seed)

    write(model(7).state_dict(), path)
    target, fresh = model(0), model(0).state_dict()

    def read():
        from fastbn.models.load_weights import load_weights

        target.load_state_dict(fresh)
        try:
            load_weights(target, path)
        except Exception:
            assert all(torch.equal(value, fresh[name]) for name, value in target.state_dict().items())
            raise
        state = target.state_dict()
        assert all(value.isfinite().all() for value in state.values())
        assert all(
            (value >= 0).all() for name, value in state.items() if "running_var" in name or "tracked" in name
        )
        return {name: value.clone() for name, value in state.items()}

    return [path], read, verified


@kind
def weights_pth(folder):
    return weights(folder / "w.pth", torch.save, True)


@kind
def weights_pth_of_old(folder):
    return weights(
        folder / "w.pt", functools.partial(torch.save, _use_new_zipfile_serialization=False), False
    )


@kind
def weights_safetensors(folder: Path):
    return weights(folder / "w.safetensors", save_file, False)
