"""The download of CIFAR's archives: streamed to a `.part`, verified, renamed; a kill leaves nothing that
looks finished."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import shutil
import ssl
import sys
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from fastbn import files
from fastbn.data.cifar import verify
from fastbn.data.cifar_files import Cifar, File
from fastbn.errors import UsageError
from fastbn.files.archives import open_tar
from fastbn.files.lock import locked

CONNECT_SECONDS = 5.0  # limits the connection, so that a machine without a network knows soon
READ_SECONDS = 60.0  # limits each wait for more bytes; the download as a whole has no limit
CHUNK = 1 << 18
MOST = 1 << 30  # bytes that are downloaded, and unpacked; CIFAR's archives have 170 million, unpacked 186


class DownloadFailed(UsageError):
    """An error of the network, or of what it delivered; `reason` is the short of it."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def download(
    url: str, target: str | Path, md5: str, progress: bool = True, connect_seconds: float = CONNECT_SECONDS
) -> None:
    """Fetch `url` to `target`, which appears only whole and with the given MD5; DownloadFailed otherwise."""
    target = Path(target)
    part = target.with_name(target.name + ".part")
    by_hand = f"download it by other means and put {target.name} into {target.parent}"
    try:
        digest = _stream(url, part, progress, connect_seconds)
        if digest != md5:
            reason = f"the file's MD5 is {digest}, not the expected {md5}"
            raise DownloadFailed(f"cannot use {url}: {reason}; try again, or {by_hand}", reason)
        os.replace(part, target)
    except (OSError, http.client.HTTPException) as error:  # URLError, HTTPError and time-outs are OSErrors
        reason = _reason(error)
        raise DownloadFailed(f"cannot download {url}: {reason}; try again, or {by_hand}", reason) from None
    finally:
        part.unlink(missing_ok=True)


def fetch_cifar(spec: Cifar, data_dir: str | Path, progress: bool = True) -> None:
    """Put the official folder of python batches into `data_dir`: from the archive where it lies there, else
    by download."""
    data_dir = Path(data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with locked(data_dir / f".{spec.name}.lock"):
            if files.is_folder(data_dir / spec.forms[0].folder):  # another process fetched it meanwhile
                return
            archive = data_dir / spec.archive
            ours = files.look(archive) is None
            if ours:
                download(spec.url, archive, spec.md5, progress)
            else:
                verify(archive, File(spec.archive, spec.md5), f"delete it, or download {spec.url} again")
            _unpack(spec, archive, data_dir)
            if ours:
                archive.unlink()
    except OSError as error:
        reason = f"{data_dir} cannot be written: {files.reason(error)}"
        raise DownloadFailed(
            f"cannot fetch {spec.title}: {reason}; name another --data-dir", reason
        ) from None


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_SECONDS)


class _SecureConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_SECONDS)


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req, context=ssl.create_default_context())


def _stream(url: str, part: Path, progress: bool, connect_seconds: float) -> str:
    """Write what `url` delivers to `part`, flushed to the disk, and return its MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "fastbn"})
    with (
        urllib.request.build_opener(_Handler, _SecureHandler).open(
            request, timeout=connect_seconds
        ) as response,
        _new(part) as file,
    ):
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        with _bar(url, total, progress) as bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
                if file.tell() > MOST:
                    raise ConnectionError(f"it delivered more than {MOST:,} bytes")
        if total is not None and file.tell() != total:
            raise ConnectionError(f"the connection ended after {file.tell():,} of {total:,} bytes")
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _new(path: Path) -> BinaryIO:
    """Open a new file in the place of one that a killed process left; no link is followed."""
    path.unlink(missing_ok=True)
    return os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "wb"
    )


@contextlib.contextmanager
def _bar(url: str, total: int | None, progress: bool) -> Iterator[Any]:
    """Give a bar on a terminal; elsewhere a line at the start and one at the end."""
    terminal = progress and sys.stderr.isatty()
    if progress and not terminal:
        print(
            f"downloading {url}" + (f" ({total / 1e6:.0f} MB)" if total else ""), file=sys.stderr, flush=True
        )
    with tqdm(
        total=total,
        unit="B",
        unit_scale=True,
        desc=url.rsplit("/", 1)[-1],
        disable=not terminal,
        file=sys.stderr,
    ) as bar:
        yield bar
    if progress and not terminal:
        print(f"downloaded {url}", file=sys.stderr, flush=True)


def _unpack(spec: Cifar, archive: Path, data_dir: Path) -> None:
    """Unpack the expected members, by name, into a scratch folder; verified; then the folder is renamed at
    once."""
    form = spec.forms[0]
    wanted = {f"{form.folder}/{file.name}": file for file in form.train + form.test + form.others}
    scratch = data_dir / f".{form.folder}.part"
    remedy = f"delete {archive} and download {spec.url} again"
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed process left
    scratch.mkdir()
    try:
        with files.opened(archive) as packed, gzip.GzipFile(fileobj=packed) as plain, open_tar(plain) as tar:
            for member in tar:
                if member.size < 0 or member.offset_data + member.size > MOST:
                    raise tarfile.ReadError(f"it unpacks to more than {MOST:,} bytes")
                file = wanted.pop(member.name, None) if member.isfile() else None
                source = tar.extractfile(member) if file else None
                if file and source:
                    with _new(scratch / file.name) as out:
                        shutil.copyfileobj(source, out)
                        out.flush()
                        os.fsync(out.fileno())
                    verify(scratch / file.name, file, remedy)
        if wanted:
            raise UsageError(f"{archive} lacks {', '.join(wanted)}; {remedy}")
        os.rename(scratch, data_dir / form.folder)
    except UsageError:
        raise
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError) as error:
        raise UsageError(f"{archive} cannot be unpacked: {files.reason(error)}; {remedy}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _reason(error: Exception) -> str:
    # URLError wraps the socket's error; HTTPError has a code and a phrase
    inner = getattr(error, "reason", error)
    code = getattr(error, "code", None)
    text = (
        f"HTTP {code} {inner}"
        if code
        else getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    )
    return " ".join(str(text).split())
