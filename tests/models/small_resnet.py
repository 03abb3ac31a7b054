"""A small network of the weights' tests."""

from fastbn.models.resnet import FastBNOnlyResNet


def small(**arguments):
    return FastBNOnlyResNet(14, **{"width": 8, "engine": "stock", **arguments})
