"""Which set is chosen, where from, and what is said: `auto` falls back on absence alone, a name never
does."""

import dataclasses
import socket

import data_cifar
import pytest

from fastbn.data import DATASETS, datasets, load
from fastbn.data import download as download_module
from fastbn.data.cifar_files import CIFAR10
from fastbn.errors import UsageError


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The tiny set in CIFAR-10's place and in CIFAR-100's, the working directory empty, nobody answering
    at its address."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # not listening: a connection is refused
        spec, blobs, *_ = data_cifar.tiny()
        spec = data_cifar.served(
            spec, f"http://127.0.0.1:{silent.getsockname()[1]}/tiny.tar.gz", data_cifar.archive(blobs)
        )
        monkeypatch.setattr(
            datasets, "CIFARS", {"cifar10": spec, "cifar100": dataclasses.replace(spec, name="cifar100")}
        )
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(tmp_path)
        yield spec, blobs


@pytest.fixture
def online(tiny, monkeypatch):
    """The address answers; a list of what was asked for."""
    _spec, blobs = tiny
    asked = []

    def deliver(url, target, md5, progress=True):
        asked.append(url)
        target.write_bytes(data_cifar.archive(blobs))

    monkeypatch.setattr(download_module, "download", deliver)
    return asked


@pytest.mark.parametrize("dataset", ["auto", "cifar10", "cifar100"])
@pytest.mark.parametrize("folder", ["tiny-py", "tiny-bin"])
def test_found_in_the_folder(tiny, online, tmp_path, dataset, folder):
    _spec, blobs = tiny
    data_cifar.write(blobs, folder, tmp_path / "mine")
    loaded = load(dataset, "mine")
    assert (
        loaded.why == "Tiny-CIFAR found in mine"
        and len(loaded.train) == 14
        and len(loaded.test) == 7
        and online == []
    )
    assert loaded.name == loaded.train.name == ("cifar100" if dataset == "cifar100" else "cifar10")


@pytest.mark.parametrize("dataset", ["auto", "cifar10"])
def test_the_default_folder_downloads_by_itself(online, dataset):
    loaded = load(dataset, "data")
    assert loaded.why == "Tiny-CIFAR downloaded to data" and loaded.name == "cifar10" and len(online) == 1
    assert load(dataset, "./data").why == "Tiny-CIFAR found in data" and len(online) == 1


@pytest.mark.parametrize("dataset", ["auto", "cifar10"])
def test_another_folder_downloads_when_asked(online, dataset):
    assert load(dataset, "mine", download=True).why == "Tiny-CIFAR downloaded to mine" and len(online) == 1


def test_another_folder_is_left_alone(online, tmp_path):
    loaded = load("auto", "mine")
    assert (
        loaded.name == "digits"
        and loaded.why == "digits, embedded: Tiny-CIFAR is not in mine and --download was not given"
    )
    with pytest.raises(
        UsageError,
        match=r"is not in mine .*tiny-py or tiny-bin.*add --download, or put the official folder there",
    ):
        load("cifar10", "mine")
    assert online == [] and list(tmp_path.iterdir()) == []


def test_the_default_folder_can_be_another(online):
    assert load("auto", "cache", default_dir="cache").name == "cifar10" and len(online) == 1
    assert load("auto", "data", default_dir="cache").name == "digits" and len(online) == 1


def test_offline_auto_is_the_digits_and_says_why(tiny):
    loaded = load("auto", "data")
    assert loaded.name == "digits" and len(loaded.train) == 1437
    assert (
        loaded.why.startswith("digits, embedded: Tiny-CIFAR is not in data and could not be downloaded (")
        and "refused" in loaded.why
    )


@pytest.mark.parametrize("download", [True, False])
def test_offline_a_name_is_an_error(tiny, download):
    with pytest.raises(UsageError, match=r"cannot download http.*refused.*put tiny.tar.gz into data"):
        load("cifar10", "data", download)


@pytest.mark.parametrize("dataset", ["auto", "cifar10"])
def test_a_damaged_folder_is_an_error_and_never_the_digits(tiny, online, tmp_path, dataset):
    _spec, blobs = tiny
    data_cifar.write(blobs, "tiny-py", tmp_path / "data")
    (tmp_path / "data/tiny-py/two").write_bytes(b"short")
    with pytest.raises(UsageError, match="data/tiny-py/two is damaged"):
        load(dataset, "data", download=True)
    assert online == []


def test_an_archive_put_there_by_hand_is_unpacked(tiny, online, tmp_path):
    spec, blobs = tiny
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/tiny.tar.gz").write_bytes(data_cifar.archive(blobs)[:-1])
    with pytest.raises(UsageError, match=r"tiny.tar.gz is damaged"):
        load("auto", "mine")
    content = data_cifar.archive(blobs)
    datasets.CIFARS["cifar10"] = data_cifar.served(spec, spec.url, content)
    (tmp_path / "mine/tiny.tar.gz").write_bytes(content)
    assert load("auto", "mine").why == "Tiny-CIFAR unpacked in mine" and online == []


def test_digits_touch_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load("digits", "data", download=True)
    assert loaded.why == "digits, embedded" and loaded.name == "digits" and list(tmp_path.iterdir()) == []


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UsageError, match="'mnist'; choose one of auto, cifar10, cifar100, digits, folder"):
        load("mnist", "data")


def test_every_name_is_understood(tiny, tmp_path):
    for name in DATASETS:
        try:
            load(name, "mine")
        except UsageError as error:
            assert "is not in mine" in str(error) or "mine holds no folder" in str(error)


def test_the_names_stand_for_the_official_sets():
    assert datasets.CIFARS["cifar10"] is CIFAR10 and datasets.CIFARS["cifar100"].url.endswith(
        "/cifar-100-python.tar.gz"
    )
