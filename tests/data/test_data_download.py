"""Downloads over loopback: whole or not at all, whatever the server does."""

import hashlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import data_cifar
import pytest

from fastbn.data import download as module
from fastbn.data.cifar import read_cifar
from fastbn.data.download import DownloadFailed, download, fetch_cifar
from fastbn.errors import UsageError


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        content = self.server.content
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/tiny.tar.gz")
            self.end_headers()
            return
        if self.path == "/absent":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.path == "/stalls":
            self.wfile.write(content[:1000])
            self.wfile.flush()
            self.server.release.wait(30)
            return
        self.wfile.write(content[:-10] if self.path == "/truncated" else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests, running.release, running.content = [], threading.Event(), b""
        running.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.release.set()
        running.shutdown()


@pytest.fixture
def tiny(server):
    """(its description as served, its files); the server holds its archive."""
    spec, blobs, *_ = data_cifar.tiny()
    server.content = data_cifar.archive(blobs)
    return data_cifar.served(spec, f"{server.url}/tiny.tar.gz", server.content), blobs


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


@pytest.mark.parametrize("path", ["/tiny.tar.gz", "/moved", "/unsized"])
def test_download_is_verified_and_renamed(server, tmp_path, path, capsys):
    server.content = bytes(range(256)) * 3000  # several chunks
    download(server.url + path, tmp_path / "file", hashlib.md5(server.content).hexdigest())
    assert (tmp_path / "file").read_bytes() == server.content and visible(tmp_path) == ["file"]
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 2  # no terminal: a line at the start and one at the end
    download(server.url + path, tmp_path / "file", hashlib.md5(server.content).hexdigest(), progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/absent", "HTTP 404"),
        ("/truncated", "after 4,990 of 5,000 bytes|IncompleteRead"),
        ("/tiny.tar.gz", "MD5 is"),
    ],
)
def test_failures_leave_nothing(server, tmp_path, path, reason):
    server.content = b"x" * 5000
    with pytest.raises(DownloadFailed, match=reason) as caught:
        download(server.url + path, tmp_path / "file", "0" * 32, progress=False)
    message = str(caught.value)
    assert (
        isinstance(caught.value, UsageError)
        and "\n" not in message
        and f"put file into {tmp_path}" in message
    )
    assert caught.value.reason in message and visible(tmp_path) == []


def test_connection_refused_is_said_at_once(tmp_path):
    with socket.socket() as taken:  # bound, not listening: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadFailed, match="refused"):
            download(
                f"http://127.0.0.1:{taken.getsockname()[1]}/x", tmp_path / "file", "0" * 32, progress=False
            )
    assert visible(tmp_path) == []


def test_a_stalled_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "READ_SECONDS", 0.3)
    server.content = b"x" * 5000
    with pytest.raises(DownloadFailed, match="timed out"):
        download(f"{server.url}/stalls", tmp_path / "file", "0" * 32, progress=False)
    assert visible(tmp_path) == []


def test_the_connection_has_its_own_limit(server, tmp_path, monkeypatch):
    """Its seconds do not limit the bytes that follow: a stall longer than they allow is survived."""
    server.content = b"x" * 5000
    threading.Timer(0.6, server.release.set).start()
    # the server's own end, not a time-out
    with pytest.raises(DownloadFailed, match=r"1,000 of 5,000|IncompleteRead"):
        download(f"{server.url}/stalls", tmp_path / "file", "0" * 32, progress=False, connect_seconds=0.2)


def test_fetch_puts_the_whole_folder_and_nothing_else(tiny, tmp_path):
    spec, _blobs = tiny
    fetch_cifar(spec, tmp_path / "new" / "data", progress=False)
    assert visible(tmp_path / "new" / "data") == ["tiny-py"]
    assert sorted(p.name for p in (tmp_path / "new/data/tiny-py").iterdir()) == ["meta", "one", "test", "two"]
    assert len(read_cifar(spec, tmp_path / "new/data")[0]) == 2 * data_cifar.PER_FILE


def test_a_second_fetch_asks_nobody(server, tiny, tmp_path):
    spec, _ = tiny
    fetch_cifar(spec, tmp_path, progress=False)
    fetch_cifar(spec, tmp_path, progress=False)
    assert len(server.requests) == 1


def test_two_fetches_at_once_make_one_download(server, tiny, tmp_path):
    spec, _ = tiny
    threads = [threading.Thread(target=fetch_cifar, args=(spec, tmp_path, False)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1 and visible(tmp_path) == ["tiny-py"]


def test_an_archive_put_there_by_hand_is_used_and_kept(server, tiny, tmp_path):
    spec, _ = tiny
    (tmp_path / "tiny.tar.gz").write_bytes(server.content)
    fetch_cifar(spec, tmp_path, progress=False)
    assert server.requests == [] and visible(tmp_path) == ["tiny-py", "tiny.tar.gz"]


def test_a_damaged_archive_put_there_by_hand_is_an_error(server, tiny, tmp_path):
    spec, _ = tiny
    (tmp_path / "tiny.tar.gz").write_bytes(server.content[:-1])
    with pytest.raises(UsageError, match=r"tiny.tar.gz is damaged: expected MD5") as caught:
        fetch_cifar(spec, tmp_path, progress=False)
    assert not isinstance(caught.value, DownloadFailed) and visible(tmp_path) == ["tiny.tar.gz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda blobs: {k: v for k, v in blobs.items() if k != "tiny-py/two"}, "lacks tiny-py/two"),
        (lambda blobs: {**blobs, "tiny-py/two": b"another"}, "two is damaged"),
    ],
    ids=["a member is missing", "a member is another"],
)
def test_an_archive_of_other_content_is_refused(server, tmp_path, change, message):
    spec, blobs, *_ = data_cifar.tiny()
    server.content = data_cifar.archive(change(blobs))
    with pytest.raises(UsageError, match=message):
        fetch_cifar(
            data_cifar.served(spec, f"{server.url}/tiny.tar.gz", server.content), tmp_path, progress=False
        )
    assert not (tmp_path / "tiny-py").exists() and not list(tmp_path.glob(".*.part"))


def test_what_is_no_archive_is_refused(server, tmp_path):
    spec, blobs, *_ = data_cifar.tiny()
    for content in (b"<html>log in first</html>", data_cifar.archive(blobs)[:5000]):  # its MD5 made to fit
        server.content = content
        folder = tmp_path / str(len(content))
        with pytest.raises(UsageError, match="cannot be unpacked"):
            fetch_cifar(data_cifar.served(spec, f"{server.url}/tiny.tar.gz", content), folder, progress=False)
        assert not (folder / "tiny-py").exists()


def test_other_members_are_not_written(server, tmp_path):
    """No extractall: a member that climbs out of the folder, or is absolute, is never opened."""
    spec, blobs, *_ = data_cifar.tiny()
    inside = tmp_path / "inside"
    extra = {
        "../climbed": b"x",
        str(tmp_path / "absolute"): b"x",
        "tiny-py/extra": b"x",
        "tiny-py/../../climbed": b"x",
    }
    server.content = data_cifar.archive(blobs, extra)
    fetch_cifar(data_cifar.served(spec, f"{server.url}/tiny.tar.gz", server.content), inside, progress=False)
    assert visible(tmp_path) == ["inside"] and not (inside / "tiny-py/extra").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_said(tiny, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DownloadFailed, match="cannot be written"):
        fetch_cifar(tiny[0], tmp_path, progress=False)


def test_a_file_in_the_folders_place_is_said(tiny, tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(DownloadFailed, match="cannot be written"):
        fetch_cifar(tiny[0], tmp_path / "data", progress=False)


def test_a_kill_in_mid_download_leaves_nothing_that_counts(server, tiny, tmp_path):
    spec, _ = tiny
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from fastbn.data.download import download;"
        "download(sys.argv[2], sys.argv[3], '0' * 32, progress=False)"
    )
    root = Path(__file__).resolve().parents[2]
    target = tmp_path / "tiny.tar.gz"
    process = subprocess.Popen([sys.executable, "-c", code, str(root), f"{server.url}/stalls", str(target)])
    deadline = time.monotonic() + 120  # on a busy machine
    while not target.with_name("tiny.tar.gz.part").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert visible(tmp_path) == ["tiny.tar.gz.part"]
    (tmp_path / ".tiny-py.part").mkdir()  # and what a kill while unpacking leaves
    (tmp_path / ".tiny-py.part" / "one").write_bytes(b"half")
    server.release.set()
    fetch_cifar(spec, tmp_path, progress=False)
    assert visible(tmp_path) == ["tiny-py"]
    assert len(read_cifar(spec, tmp_path)[1]) == data_cifar.PER_FILE
