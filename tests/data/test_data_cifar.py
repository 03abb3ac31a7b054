"""CIFAR's readers on tiny sets in the official forms, every kind of damage, and pickles that are not what
they should be."""

import dataclasses
import os
import pickle
import runpy
from pathlib import Path

import data_cifar
import numpy as np
import pytest
import torch

from fastbn.data.cifar import find, read_cifar
from fastbn.data.cifar_files import CIFAR10, CIFAR100, File
from fastbn.data.unpickle import read_batch
from fastbn.errors import UsageError


@pytest.mark.parametrize("folder", ["tiny-py", "tiny-bin"])
@pytest.mark.parametrize(("name", "classes", "label_bytes"), [("cifar10", 10, 1), ("cifar100", 100, 2)])
def test_both_forms_read_the_same_images(tmp_path, folder, name, classes, label_bytes):
    spec, blobs, train, test = data_cifar.tiny(name, classes, label_bytes)
    assert find(spec, tmp_path) is None
    data_cifar.write(blobs, folder, tmp_path)
    for got, (planes, labels) in zip(read_cifar(spec, tmp_path), (train, test), strict=True):
        assert np.array_equal(got.images.numpy(), planes.transpose(0, 2, 3, 1)) and got.images.is_contiguous()
        assert np.array_equal(got.labels.numpy(), labels) and got.classes == spec.classes
        assert (got.name, got.flip, got.pad, got.default_epochs) == (name, True, 4, 160)
        assert (got.mean, got.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_absent_names_the_place_and_the_source(tmp_path):
    spec = data_cifar.tiny()[0]
    with pytest.raises(UsageError, match="no folder tiny-py or tiny-bin there; unpack http"):
        read_cifar(spec, tmp_path)


@pytest.mark.parametrize("folder", ["tiny-py", "tiny-bin"])
@pytest.mark.parametrize("sized", [True, False], ids=["size known", "MD5 alone"])
def test_damage_is_refused_in_one_line(tmp_path, folder, sized):
    spec, blobs, *_ = data_cifar.tiny()
    if not sized:
        unsized = [
            dataclasses.replace(f, train=tuple(File(x.name, x.md5) for x in f.train)) for f in spec.forms
        ]
        spec = dataclasses.replace(spec, forms=tuple(unsized))
    data_cifar.write(blobs, folder, tmp_path)
    path = next(p for p in sorted((tmp_path / folder).iterdir()) if p.name.startswith("two"))
    good = path.read_bytes()

    flipped = bytearray(good)
    flipped[-1] ^= 1  # one bit of one pixel
    for bad, said in [
        (good[:-1], "bytes, found" if sized else "expected MD5"),
        (bytes(flipped), "expected MD5"),
        (b"", "damaged"),
    ]:
        path.write_bytes(bad)
        with pytest.raises(UsageError, match=said) as caught:
            read_cifar(spec, tmp_path)
        message = str(caught.value)
        assert (
            str(path) in message
            and "\n" not in message
            and f"delete the folder {tmp_path / folder}" in message
        )
    path.unlink()
    with pytest.raises(UsageError, match="is missing; delete the folder"):
        read_cifar(spec, tmp_path)


def test_a_damaged_form_does_not_give_way_to_the_other(tmp_path):
    spec, blobs, *_ = data_cifar.tiny()
    data_cifar.write(blobs, "tiny-bin", tmp_path)
    (tmp_path / "tiny-py").mkdir()
    with pytest.raises(UsageError, match="is missing"):
        read_cifar(spec, tmp_path)


def test_a_partial_record_is_refused(tmp_path):
    spec, blobs, *_ = data_cifar.tiny()
    blob = blobs["tiny-bin/test.bin"][:-5]
    blobs["tiny-bin/test.bin"] = blob
    data_cifar.write(blobs, "tiny-bin", tmp_path)
    form = dataclasses.replace(spec.forms[1], test=(data_cifar.describe("test.bin", blob),))
    with pytest.raises(UsageError, match="not whole records of 3,073"):
        read_cifar(dataclasses.replace(spec, forms=(form,)), tmp_path)


class Command:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def test_a_malicious_pickle_is_refused_unrun(tmp_path):
    witness = tmp_path / "witness"
    for command in (
        Command(os.system, f"touch {witness}"),
        Command(eval, f"open({str(witness)!r}, 'w')"),
        Command(Path, "x"),
    ):
        for content in (command, {b"data": command, b"labels": []}):
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                with pytest.raises(UsageError, match=r"names .*nothing of it was run"):
                    read_batch(pickle.dumps(content, protocol), "batch", "labels")
    assert not witness.exists()


PLANES, LABELS = data_cifar.random_set(7, 10)
ROWS = PLANES.reshape(7, -1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({b"labels": []}, "lacks data"),
        ({b"data": ROWS}, "lacks labels"),
        ({b"data": ROWS.astype(object), b"labels": [0] * 7}, "'O8'"),
        ({b"data": ROWS.astype(np.float32), b"labels": [0] * 7}, "'f4'"),
        ({b"data": ROWS[:, :-1].copy(), b"labels": [0] * 7}, r"shape \(7, 3071\)"),
        ({b"data": PLANES, b"labels": [0] * 7}, r"shape \(7, 3, 32, 32\)"),
        ({b"data": [1, 2], b"labels": [0] * 7}, "holds as data"),
        ({b"data": ROWS, b"labels": [0] * 6}, "7 integers"),
        ({b"data": ROWS, b"labels": ["0"] * 7}, "7 integers"),
        ({b"data": ROWS, b"labels": (0,) * 7}, "7 integers"),
    ],
)
def test_unexpected_content_is_refused(content, message):
    with pytest.raises(UsageError, match=message):
        read_batch(pickle.dumps(content, protocol=2), "batch", "labels")


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\x80\x02",
        b"no pickle at all",
        pickle.dumps({b"data": ROWS}, 2)[:-20],
        b"\x80\x02}b.",
        b"\x80\x02Pid\n.",
    ],
)
def test_what_is_no_pickle_is_refused(blob):
    with pytest.raises(UsageError, match=r"batch .*; delete it"):
        read_batch(blob, "batch", "labels")


def test_an_array_whose_shape_lies_is_refused():
    blob = pickle.dumps({b"data": ROWS, b"labels": [0] * 7}, protocol=2)
    lied = blob.replace(b"K\x07M\x00\x0c", b"K\x09M\x00\x0c")  # 9 rows claimed, 7 there
    assert lied != blob
    with pytest.raises(UsageError, match="in 21504 bytes"):
        read_batch(lied, "batch", "labels")


def test_python_2s_pickles_and_fortran_order_are_read():
    """The official files were written by Python 2: strings where Python 3 has bytes, so no _codecs.encode."""
    opcodes = data_cifar.python_blob(PLANES, LABELS)
    assert b"numpy.core.multiarray" in opcodes and b"numpy._core" not in opcodes
    header = b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03"
    header += b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
    dtype = b"cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07"
    dtype += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    labels = b"U\x06labels](" + b"".join(b"K" + bytes([k]) for k in LABELS) + b"eu."
    for fortran, order in ((b"\x89", "C"), (b"\x88", "F")):
        text = ROWS.tobytes(order=order)
        state = (
            b"(K\x01K\x07M\x00\x0c\x86"
            + dtype
            + fortran
            + b"T"
            + len(text).to_bytes(4, "little")
            + text
            + b"tb"
        )
        rows, got = read_batch(header + state + labels, "batch", "labels")
        assert np.array_equal(rows, ROWS) and np.array_equal(got, LABELS)


def test_the_official_descriptions_are_whole():
    for spec, classes, count in ((CIFAR10, 10, 7), (CIFAR100, 100, 3)):
        assert len(set(spec.classes)) == classes and list(spec.classes) == sorted(spec.classes)
        files = [file for form in spec.forms for file in form.train + form.test + form.others]
        assert len(files) == 2 * count - 1 and len({file.md5 for file in files}) == len(files)
        assert all(len(file.md5) == 32 and int(file.md5, 16) for file in files)
    assert sum(file.size for file in CIFAR10.forms[1].train) == 50_000 * 3_073


@pytest.mark.slow
def test_the_real_test_images(tmp_path):
    """Ten thousand official test images, a thousand a class; their channel means are published to three
    digits."""
    given = os.environ.get("FASTBN_CIFAR10")
    script = Path(__file__).resolve().parents[3] / "shared/data/cifar10/unpack.py"
    if given:
        folder = Path(given)
    elif script.exists():
        folder = tmp_path
        runpy.run_path(str(script))["main"](str(tmp_path), ["test"])
    else:
        pytest.skip("no CIFAR-10: set FASTBN_CIFAR10 to the directory that holds its official folder")
    form = find(CIFAR10, folder)
    assert form is not None
    only_test = dataclasses.replace(CIFAR10, forms=(dataclasses.replace(form, train=form.test),))
    _, test = read_cifar(only_test, folder)
    assert test.images.shape == (10_000, 32, 32, 3) and test.labels.bincount().tolist() == [1000] * 10
    means = test.images.double().mean((0, 1, 2)) / 255
    assert torch.allclose(means, torch.tensor([0.494, 0.485, 0.450], dtype=torch.float64), atol=1e-3)
    assert test.labels[:6].tolist() == [3, 8, 8, 0, 6, 6]  # cat, ship, ship, airplane, frog, frog
