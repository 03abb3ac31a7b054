"""The figures as matplotlib Axes: what is drawn are the arrays."""

import sys

import numpy as np
import pytest
import torch
from nets import resnet
from runs import digits, train

from bench.oracle.networks import images
from fastbn.analysis import affine as values
from fastbn.analysis import axes
from fastbn.analysis.features import filters
from fastbn.analysis.firing import firing
from fastbn.analysis.runs import read
from fastbn.analysis.thresholds import Cut
from fastbn.errors import MachineError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def matplotlib():
    return pytest.importorskip(
        "matplotlib", reason="matplotlib is not installed: pip install -e '.[analysis]'"
    )


def points(ax, i=0):
    return np.asarray(ax.lines[i].get_ydata(), dtype=float).tolist()


def test_gamma_and_beta(matplotlib):
    models = {"one": resnet(8, 4), "two": resnet(8, 4, seed=1)}
    found = [values.affine(model) for model in models.values()]
    for which in ("gamma", "beta"):
        ax = axes.histogram(models, which, bins=9)
        at = values.edges(found, which, 9)
        for patch, own in zip(ax.patches, found, strict=True):
            assert patch.get_data().values.tolist() == values.histogram(own, which, at).shares.tolist()
            assert patch.get_data().edges.tolist() == at.tolist()
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
    assert points(axes.small(models, 0.3), 1) == values.small(found[1], 0.3).tolist()


def test_firing_and_pruning(matplotlib):
    own = firing(resnet(8, 4), digits()[1])
    assert points(axes.firing({"one": own})) == [one.dead for one in own]
    assert points(axes.firing({"one": own}, "always")) == [one.always for one in own]
    cuts = [Cut(None, 0.0, 0.5, 100, 1000, 2.0, 1.0), Cut(0.1, 0.2, 0.4, 80, 700, 1.0, 2.0)]
    ax = axes.pruning({"one": cuts}, "speed_up")
    assert ax.lines[0].get_xdata().tolist() == [0.0, 0.1] and points(ax) == [1.0, 2.0]


def test_curves_and_courses(matplotlib, tmp_path):
    assert train(tmp_path / "run") == 0
    run = read(tmp_path / "run")
    assert points(axes.curves([run])) == [line["test_accuracy"] for line in run.lines]
    ax = axes.curves([run], "train_loss", "seconds")
    assert ax.lines[0].get_xdata().tolist() == pytest.approx(
        np.cumsum([line["seconds"] for line in run.lines])
    )
    assert not axes.curves([run], against="joules").lines
    ax = axes.course({"run": run.lines}, "gamma_std")
    assert [points(ax, i) for i in range(9)] == np.transpose(
        [line["norms"]["gamma_std"] for line in run.lines]
    ).tolist()


def test_pictures(matplotlib):
    from matplotlib.figure import Figure

    model = resnet(8, 4)
    ax = Figure().add_subplot()
    assert axes.filters(model, columns=3, ax=ax) is ax
    drawn = ax.images[0].get_array()
    assert drawn.shape == (7, 11, 3)  # two rows of three 3×3 filters, a pixel between
    weight = filters(model).weight[3]
    expected = (weight / weight.abs().max() + 1) / 2
    assert np.allclose(drawn[4:7, 0:3], expected.permute(1, 2, 0))
    assert axes.feature_maps(model, images(2, 9, 9, dtype=torch.float32), "bn1").images[
        0
    ].get_array().shape == (19, 39, 3)
    test = digits()[1]
    shown = axes.exciting(model, test, "layer1.0.bn2", [0, 2], 3).images[0].get_array()
    assert shown.shape == (65, 98, 3)
    axes.histogram({"one": model}).figure.canvas.draw()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MachineError, match=r"fastbn\[analysis\]"):
        axes.small({"one": resnet(8, 4)})
