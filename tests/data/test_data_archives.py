"""Tar archives whose headers lie, and what a download writes."""

import io
import os
import tarfile

import data_cifar
import pytest
from damage import bounded, refused

from fastbn.data.download import _unpack, fetch_cifar
from fastbn.data.imagenet.members import members
from fastbn.errors import UsageError
from fastbn.files.archives import TarPieces


def header(name="a.png", size=0, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:512]))
    return bytes(block)


TARS = {
    "backwards": header() + header(size=-1024) + header("b.png"),
    "a long header": header("x", 1 << 40, tarfile.GNUTYPE_LONGNAME) + b"a" * 512,
    "a negative header": header("x", -512, tarfile.XHDTYPE) + b"a" * 512,
    "headers of headers": header("x", 1, tarfile.GNUTYPE_LONGNAME).join([b""] + [b"a" * 512] * 3_000),
    "a long name": header("x", 5_000, tarfile.GNUTYPE_LONGNAME) + b"a" * 5_000 + bytes(120) + header("y"),
}


@pytest.mark.parametrize("what", TARS)
def test_a_shards_headers_are_read_within_bounds(tmp_path, what):
    (tmp_path / "x.tar").write_bytes(TARS[what] + bytes(1024))
    with bounded():
        found, wrong = members(str(tmp_path / "x.tar"))
    assert len(found) <= 2 and wrong and wrong.isprintable() and len(wrong) < 300


def test_tar_reads_in_pieces():
    pieces = TarPieces(io.BytesIO(b"12345"))
    assert pieces.read(3) == b"123"
    for size in (-1, 1 << 21):
        with pytest.raises(tarfile.ReadError):
            pieces.read(size)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    spec, blobs, *_ = data_cifar.tiny()
    (tmp_path / "x.tar.gz").write_bytes(data_cifar.archive(blobs, {"zeros": bytes(2_000_000)}))
    monkeypatch.setattr("fastbn.data.download.MOST", 1_000_000)
    refused(
        _unpack,
        spec,
        tmp_path / "x.tar.gz",
        tmp_path,
        match="it unpacks to more than 1,000,000 bytes; delete",
    )
    assert sorted(os.listdir(tmp_path)) == ["x.tar.gz"]


def test_neither_lock_nor_part_follows_a_link_or_empties_a_file(tmp_path):
    spec, blobs, *_ = data_cifar.tiny()
    (tmp_path / "mine").write_bytes(b"precious")
    (tmp_path / f".{spec.name}.lock").write_bytes(b"precious")
    (tmp_path / f"{spec.archive}.part").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match="cannot download"):
        fetch_cifar(spec, tmp_path, progress=False)
    assert (tmp_path / f".{spec.name}.lock").read_bytes() == (tmp_path / "mine").read_bytes() == b"precious"
    (tmp_path / f".{spec.name}.lock").unlink()
    (tmp_path / f".{spec.name}.lock").symlink_to(tmp_path / "new")
    with pytest.raises(UsageError, match="cannot be written"):
        fetch_cifar(spec, tmp_path, progress=False)
    assert not (tmp_path / "new").exists() and blobs
