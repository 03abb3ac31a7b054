"""The report on networks without BatchNorm and on others than ResNets; published figures."""

import pytest
from report_pages import SECTIONS, refused, tree
from runs import train

from fastbn.analysis.published import published
from fastbn.analyze import main
from fastbn.train import main as trained

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("norm, trains", [("instance", "bn"), ("selu", "all")])
def test_a_run_without_batchnorm(norm, trains, tmp_path, capfd):
    assert train(tmp_path / "run", "--norm", norm, "--train", trains, epochs=1) == 0
    capfd.readouterr()
    refused(
        [tmp_path / "run", "-o", tmp_path / "x.html"], capfd, str(tmp_path / "run"), "no BatchNorm2d layer"
    )


def test_a_network_that_is_no_resnet(tmp_path):
    arguments = (
        "--family vgg --depth 11 --width 2 --dataset digits --limit-train 48 --limit-test 16 "
        "--batch-size 24 --epochs 1 --out"
    )
    assert trained([*arguments.split(), str(tmp_path / "run")]) == 0
    assert main([str(tmp_path / "run"), "-o", str(tmp_path / "x.html")]) == 0
    content = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "VGG-11 on digits is no ResNet" in content and "layer5.1.bn" in content
    assert [one.get("id") for one in tree(content).iter("section")] == SECTIONS


def test_published_figures_are_those_of_the_same_network():
    cifar = {"dataset": "cifar10", "family": "cifar", "width": 16, "norm": "batch"}
    assert published(cifar | {"depth": 866, "train": "bn"}) == pytest.approx(0.82)
    assert published(cifar | {"depth": 110, "train": "all"}) == pytest.approx(0.934)
    assert published(cifar | {"depth": 14, "train": "bn", "width": 512}) == pytest.approx(0.734)
    others = (
        {"depth": 20},
        {"width": 32},
        {"train": "bn+output"},
        {"dataset": "digits"},
        {"norm": "group"},
        {"family": "vgg"},
    )
    assert all(published(cifar | {"depth": 56, "train": "bn"} | other) is None for other in others)
