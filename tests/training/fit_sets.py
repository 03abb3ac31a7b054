"""The sets and the fit that tests of training share."""

from runs import digits

import fastbn
from fastbn.trainable import trainable

TRAIN, TEST = digits()


def fit(model, *sets, **settings):
    return fastbn.fit(
        model, *(sets or (TRAIN, TEST)), **{"epochs": 2, "batch_size": 24, "progress": False, **settings}
    )


def trained(model):
    return {name: p.detach().clone() for name, p in trainable(model)}
