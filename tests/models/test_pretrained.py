"""Every network in pretrained/ reaches the accuracy on record of its run, where its data set is at hand."""

import os
import re
import runpy
from pathlib import Path

import pytest
from runs import REPOSITORY

from fastbn.evaluate import main
from fastbn.experiments.records import read, run_of
from fastbn.training import checked_file

NETWORKS = sorted(path.parent for path in (REPOSITORY / "pretrained").glob("*/checkpoint.safetensors"))
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
WITHIN = 0.0005  # five of 10,000 images: what another CPU's rounding may move

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """The folder of the official files, or None."""
    given = [Path(os.environ["FASTBN_CIFAR10"])] if "FASTBN_CIFAR10" in os.environ else [REPOSITORY / "data"]
    found = next((place for place in given if list(place.glob("cifar-10-batches-*"))), None)
    if found is None and (SHARED / "cifar10" / "unpack.py").exists():
        found = tmp_path_factory.mktemp("cifar10")
        runpy.run_path(str(SHARED / "cifar10" / "unpack.py"))["main"](str(found), [])
    return found


def folder_of(dataset, cifar10):
    """Return where the data lie that a network was trained on; skip where they do not."""
    if dataset == "cifar10":
        return cifar10 or pytest.skip(
            "no CIFAR-10: set FASTBN_CIFAR10 to the folder that holds its official one"
        )
    text = Path(os.environ.get("FASTBN_TWEETS", SHARED / "text" / "sentiment140_25k.csv"))
    return text if text.exists() else pytest.skip("no tweets: set FASTBN_TWEETS to the file of the 25,000")


@pytest.mark.parametrize("network", NETWORKS, ids=[path.name for path in NETWORKS])
def test_a_network_reaches_what_is_on_record(network, cifar10, capfd):
    asked = run_of(network, checked_file.read(network / "checkpoint.safetensors")[1]["config"])
    same = (run for run in read([REPOSITORY / "bench" / "results"]) if run.config.seed == asked.config.seed)
    recorded = next(run for run in same if run.identity == asked.identity).summary["test_accuracy"]
    place = folder_of(asked.config.dataset, cifar10)
    assert main([str(network), "--data-dir", str(place)]) == 0
    said = capfd.readouterr().out
    match = re.search(r"test accuracy (\d\.\d{4})", said)
    assert match and abs(float(match[1]) - recorded) <= WITHIN, said
