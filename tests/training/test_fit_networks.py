"""Networks of one's own: trained as any, or told what to do where they return logits in another form."""

import warnings

import pytest
import torch
from fit_sets import fit, trained
from runs import network
from torch import nn

import fastbn
from fastbn.errors import UsageError
from fastbn.trainable import freeze, trainable

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_network_of_ones_own():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    fastbn.fuse(freeze(model, "bn"))
    before = trained(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = fit(model)
    assert history[-1]["train_loss"] > 0
    assert not any(torch.equal(p, before[name]) for name, p in trainable(model))


class Head(nn.Module):
    """The test network's logits in a form that somebody's network returns."""

    def __init__(self, form):
        super().__init__()
        self.inner, self.form = network(), form

    def forward(self, x):
        return self.form(self.inner(x))


@pytest.mark.parametrize(
    "form, says",
    [
        (lambda z: (z, z), r"returns a tuple; .* model\(x\)\[0\]"),
        (lambda z: {"out": z}, r"returns a dict; .* model\(x\)\['out'\]"),
        (lambda z: z[:, :5], r"10 classes, .* shape \(\d+, 5\)"),
    ],
)
def test_a_network_that_returns_no_logits(form, says):
    with pytest.raises(UsageError, match=says):
        fit(freeze(Head(form)))
